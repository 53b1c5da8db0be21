# %% [markdown] question
# # 18 · Memory
# Covers: `minillama/system/memory.py`, `tools/memory_cost.py`, `tests/system/test_memory.py`
# Needs: 10, 12
# Time: 8 s
# Teaches: bytes per parameter, Adam's moments, 8-bit Adam, Adafactor, activations, checkpointing, data parallelism
# Paper: [Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054), section 3
#
# **Question.** LLaMA 7B is a file of 13.5 GB. Training it takes more than 100 GB. Where
# do they go?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $N$ | `n_parameters()` | | how many weights there are |
# | $b$ | `BYTES` | | bytes kept for each weight |
# | $L$ | `n_layers` | | layers |
# | $B, T, D$ | `x` | (B, T, D) | what goes through the layers: batch, time, width |
# | $g$ | `grad` | | the gradient of each weight |

# %% naive
import torch

from minillama.config import preset

big = preset("llama_7b")
N = big.n_parameters()
BYTES = {  # mixed precision with Adam, bytes for each weight
    "weights, bf16": 2, "gradients, bf16": 2, "weights, fp32 copy": 4,
    "Adam's first moment, fp32": 4, "Adam's second moment, fp32": 4}
for name, b in BYTES.items():
    print(f"{name:28} {b} x {N / 1e9:.2f} billion = {b * N / 1e9:5.1f} GB")
total = sum(BYTES.values()) * N / 1e9
print(f"{'together':28} {sum(BYTES.values())} bytes: {total:.1f} GB")

# %% [markdown] formula
# Running a model needs its weights. Training needs, for each weight, also its gradient,
# the two running means that Adam keeps, and an exact copy: steps are so small that a
# 16-bit weight would round them away.
# $$\text{bytes} = N \cdot b, \qquad b = 2 + 2 + 4 + 4 + 4 = 16$$
# ascii: bytes = N * b,  b = 2 + 2 + 4 + 4 + 4 = 16
#
# A figure often quoted for 7B is 70 GB. That is (2 + 8) bytes times 7 billion: 16-bit
# weights and Adam's moments, without gradients and without the exact copy. Ask what is
# counted.
#
# **Activations** come on top. To compute gradients, backward needs what each layer
# read. It is kept from the forward pass, and it grows with the batch and the length,
# $B \cdot T \cdot D \cdot L$, not with the number of weights.
#
# **Checkpointing** keeps only what goes *into* each block, and computes the inside
# again when backward comes by, one block at a time: less memory, about a third more
# work, the same gradients.

# %% module
from minillama.system.memory import cache_bytes, weights_bytes

kinds = "fp32", "fp16", "int8", "nf4"
sizes = {kind: weights_bytes(big, kind) / 1e9 for kind in kinds}
print({kind: f"{size:.2f} GB" for kind, size in sizes.items()})
print(f"KV cache: {cache_bytes(big, tokens=1) / 1024:.0f} KiB a token")
assert abs(sizes["fp16"] - 2 * N / 1e9) < 1e-9
assert cache_bytes(big, 1) == 2 * big.n_layers * big.dim * 2

# %% [markdown] experiment
# **Experiment.** We count what autograd keeps for a step of a small LLaMA, tensor by
# tensor, with a hook that sees everything that is saved. Weights are kept anyway, and
# do not count. Then the same with checkpointing.

# %% measure
from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.transformer import Transformer


def step(n_layers, T, recompute):
    """(bytes kept for backward, all gradients as one vector) of one step at batch 4."""
    torch.manual_seed(0)
    config = ModelConfig(64, n_layers, 4, 256, hidden_dim=172)
    model = Transformer(config, torch_attention)
    model.gradient_checkpointing = recompute
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()  # two views of one memory count once
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, 256, (4, T))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(tokens).logsumexp(-1).mean()
        total = sum(kept.values())  # before backward, which computes blocks again
    loss.backward()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])

# %% compare
depths = [1, 2, 4, 8]
kept = {name: [step(L, 64, name == "recomputed")[0] / 1e6 for L in depths]
        for name in ("kept", "recomputed")}
saving = kept["kept"][-1] / kept["recomputed"][-1]
a, b = (step(4, 64, recompute)[1] for recompute in (False, True))
print({name: [f"{x:.1f} MB" for x in row] for name, row in kept.items()})
print(f"largest difference of any gradient: {(a - b).abs().max():.1e}")

# %% figure
from minillama.plots import CONTRAST, OURS, bars, figure, label_end, show

rows = [("training, Adam", total, CONTRAST), ("fp16, to run it", sizes["fp16"], OURS),
        ("int8", sizes["int8"], OURS), ("NF4", sizes["nf4"], OURS)]
show(bars("LLaMA 7B: training takes eight times its file", rows, "GB"),
     f"Training {total:.1f} GB, running {sizes['fp16']:.1f} or less")
title = f"Computing blocks again keeps {saving:.0f} times less at 8 layers"
picture, axes = figure(title, "layers", "kept for backward, MB")
for (name, values), colour in zip(kept.items(), (CONTRAST, OURS), strict=True):
    axes.plot(depths, values, color=colour, marker="o", markersize=4)
    label_end(axes, depths, values, name, colour)
axes.set(xticks=depths, xlim=(0, 9.8), ylim=(0, 1.05 * kept["kept"][-1]))
ends = {name: f"{values[-1]:.1f} MB" for name, values in kept.items()}
show(picture, f"At 8 layers: {ends}")

# %% split
def gradient(rows):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(64, 2, 4, 256, hidden_dim=172), torch_attention)
    model(rows).logsumexp(-1).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


tokens = torch.randint(0, 256, (8, 32))
halves = (gradient(tokens[:4]) + gradient(tokens[4:])) / 2  # two machines
apart = (halves - gradient(tokens)).abs().max().item()
print(f"two halves of a batch, averaged, against the whole: {apart:.1e} apart")

# %% articles
from tools.memory_cost import articles, sentence, terms

# What articles say in GB, what the terms add up to, and by how much they differ
held = articles()
for what, said, given, off, _ in held:
    print(f"{what:47} {said:6g} {given:8.2f} {off:+4.0%}")
print("of 7B, without activations:")
for name, method, optimizer in (
        ("fp32, AdamW", "full-fp32", "adamw"), ("16 bits, AdamW", "full-half", "adamw"),
        ("16 bits, 8-bit AdamW", "full-half", "adamw-8bit"),
        ("16 bits, Adafactor", "full-half", "adafactor")):
    sums = terms(big, method, optimizer=optimizer)
    bytes_of = [sums[key] / 1e9 for key in ("weights", "gradients", "optimizer")]
    print("{:21} {:4.1f} + {:4.1f} + {:4.1f} GB".format(name, *bytes_of))
small = terms(big, "qlora", tokens=512, recompute=True)
print(sentence("llama_7b", "qlora, 512 tokens, checkpointing,", small, 8e9))

# %% [markdown] exercise
# **What articles say.** Two rows are no sum of anything: 60 and 30 GB on a CPU are
# rules of thumb. 65B in 780 GB has no exact copy of its weights; 4 bytes a weight
# more make 1,045. By this count QLoRA of 7B fits into the 8 GB of a phone; what was
# *shown* on phones in 2023 is the tuned model running, not its tuning.
#
# **Half precision alone is not enough.** It halves weights and gradients and leaves
# Adam's moments, the largest part: the second is a mean of squares, which 16 bits round
# to nothing. 8-bit Adam keeps each moment in a byte, with a scale for every block of
# them; Adafactor keeps, of the second moment of a matrix, one number for each row and
# each column, and no first.
#
# **Data parallelism.** Two machines hold the same weights, take half of the batch each,
# and average their gradients: the same step, as the last cell shows, in half of the
# time, but for what it takes to exchange the gradients. It spares activations, not
# weights; each machine still holds all 16 bytes. (The paper linked above divides those
# among the machines as well.)
#
# **Exercise.** Write checkpointing yourself in `lessons/exercises/ex18_memory.py`:
# forget the inside of a block, and compute it again in backward. Then
# `python3 run.py check 18`.

# %% closing
assert f"{total:.1f}" == "107.8" and f"{(2 + 8) * N / 1e9:.1f}" == "67.4"
assert cache_bytes(big, tokens=1) == 512 * 1024 and 3.5 < sizes["nf4"] < 4.1
assert max(abs(off) for *_, off, _ in held) < 0.11 and sum(small.values()) < 8e9
assert saving > 6 and torch.allclose(a, b, atol=1e-6) and apart < 1e-6
print("You should see: 16 bytes a weight, 107.8 GB for 7B; "
      f"{sizes['nf4']:.1f} GB in NF4; {saving:.0f} times less kept "
      "with checkpointing (above 6), equal gradients")
