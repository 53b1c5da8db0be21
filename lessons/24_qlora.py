# %% [markdown] question
# # 24 · QLoRA
# Covers: `minillama/quant/quantized_linear.py`, `minillama/train/paged_adamw.py`, `tests/train/test_paged_adamw.py`
# Needs: 18, 20, 23
# Time: 30 s
# Teaches: training through a frozen 4-bit base, storage and compute type, checkpointing, paged AdamW
# Paper: [Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), section 3
#
# **Question.** LoRA (lesson 20) trains little, but the frozen base must still lie in
# memory: for LLaMA 65B that is 131 GB in 16 bits. NF4 (lesson 23) shrinks it to a
# quarter. But how can anything learn through weights that know only 16 values?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $x$ | `x` | (..., in) | what a layer reads |
# | $y$ | `y` | (..., out) | what it says |
# | $L$ | `loss` | | the number that training lowers |
# | $dx$, $dy$ | `dx`, `dy` | as $x$, $y$ | slope of $L$ along each: the *gradient* |
# | $c$ | `stored` | | the base weight as NF4 keeps it: codes and scales |
# | $W_c$ | `W` | (out, in) | the weight that $c$ stands for |
# | $A$, $B$ | `A`, `B` | (R, in), (out, R) | the adapter's thin matrices, of rank $R$ |
# | $\alpha$ | `alpha` | | scale of the adapter |

# %% naive
import torch

from minillama.quant.nf4 import NF4Linear, quantize_nf4

torch.manual_seed(0)
stored = quantize_nf4(torch.randn(24, 64))


class ThroughTheWall(torch.autograd.Function):
    """y = x W^T; for the way back it keeps the 4-bit codes, not W."""

    @staticmethod
    def forward(ctx, x, stored):
        ctx.stored = stored
        return x @ stored.dequantize().T  # W lives for this one line

    @staticmethod
    def backward(ctx, dy):
        return dy @ ctx.stored.dequantize(), None  # and for this one: no slope for c


x, dy = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 24)
y = ThroughTheWall.apply(x, stored)
[dx] = torch.autograd.grad(y, x, dy)
W = stored.dequantize().requires_grad_()
[wanted] = torch.autograd.grad(x @ W.T, x, dy)
assert torch.allclose(dx, wanted, atol=1e-5)
print("the way back agrees with autograd; the codes asked for no slope")

# %% [markdown] formula
# **Two types of number.** What is *stored* has 4 bits; what is *computed* with has 16
# or 32. Before a product the layer is unpacked, and afterwards the unpacked copy is
# thrown away. Only one layer at a time is ever large. Backward unpacks it once more.
# (A raised $T$ turns a matrix over.)
# $$y = x W_c^T + \frac{\alpha}{R}\, x A^T B^T, \qquad dx = dy\, W_c + \frac{\alpha}{R}\, dy\, B A$$
# ascii: y = x Wc^T + (alpha / R) x A^T B^T,   dx = dy Wc + (alpha / R) dy B A
#
# Nobody asks for the slope along $c$: a code is a name, and names have no slope. They
# need none, for the base is frozen. The slope goes *through* the wall, $dy\, W_c$, to
# the adapters of the layers below. And the adapters learn to mend what rounding broke,
# because they learn with the rounded base in place.

# %% module
from torch import nn

from minillama.peft.lora import LoRAConfig, add_lora, lora_layers

layer = NF4Linear(stored)
ours = layer(x)
assert torch.equal(ours, y) and torch.equal(torch.autograd.grad(ours, x, dy)[0], dx)
model = nn.Sequential(NF4Linear(stored))
add_lora(model, LoRAConfig(rank=4, targets=("0",)))
model(x).sum().backward()
print("with a slope:", [name for name, p in model.named_parameters()
                        if p.grad is not None])
assert not list(layer.parameters())  # codes and scales are buffers: nothing to train

# %% [markdown] memory
# **What it saves.** A weight takes 4 bits; its share of the scales, themselves in 8
# bits, takes 0.127 more. For the $N$ weights of 65B:
# $$N \cdot \frac{4.127}{8} = 65.29 \cdot 10^9 \cdot 0.516 = 33.7 \text{ GB}$$
# ascii: N * 4.127 / 8 = 65.29e9 * 0.516 = 33.7 GB
#
# The embedding table and the head stay in 16 bits, which makes it 34.5. What is trained
# costs 16 bytes a number: itself, its slope, and Adam's two averages, in fp32. That is
# an adapter of rank 64 on every linear layer. Checkpointing (lesson 18) keeps of the
# activations only what enters a block.

# %% budget
from minillama.config import preset
from minillama.system.memory import weights_bytes

big = preset("llama_65b")
N, D, F, layers = big.n_parameters(), big.dim, big.hidden_dim, big.n_layers
bits = 4 + 8 / 64 + 32 / (64 * 256)
by_formula = N * bits / 8 / 1e9
adapter = layers * 64 * (4 * (D + D) + 3 * (D + F))  # numbers in A and B
entering = layers * 512 * D * 2  # what enters each block, 512 tokens, 16 bits
rows = {"all weights": (2 * N, 14 * N, entering),
        "LoRA": (2 * N, 16 * adapter, entering),
        "QLoRA": (weights_bytes(big, "nf4"), 16 * adapter, entering)}
print(f"65B in NF4 by the formula: {by_formula:.1f} GB")
print(f"{'GB':12}    base   learn  inputs    together")
gb = {name: [part / 1e9 for part in parts] for name, parts in rows.items()}
for name, parts in gb.items():
    print(f"{name:12}", " ".join(f"{x:7.1f}" for x in parts), f"{sum(parts):10.1f}")

# %% [markdown] experiment
# It fits on a card of 48 GB, with little to spare: one long example, and memory runs
# out. Hence the last idea. Adam's averages are needed once a step, in order. So they
# may live elsewhere: in the paper in the computer's main memory, here in a file. Of
# this *paged* optimizer only a small piece is in memory at a time. It must not change
# a single bit of the result, and we check that.
#
# **Experiment.** A small LLaMA learns stories and forum posts. Then it should learn
# good answers only, as in lesson 20: once with LoRA on the base as it is, once with all
# of QLoRA: NF4 base, adapters on all linear layers, checkpointing, paged AdamW.

# %% data
import copy

import numpy as np
from torch.nn.functional import cross_entropy

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.corpus import forum, mixture
from minillama.quant.quantize_linears import quantize_linears
from minillama.tokenizer import train_bpe
from minillama.train.data import Batches, Tokens
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW, clip_gradients
from minillama.train.paged_adamw import LEAST, PagedAdamW
from minillama.train.perplexity import held_out_loss
from minillama.transformer import Transformer

general = [document.text for document in mixture(0, 900)]
tokenizer = train_bpe(general, 512)


def row(texts):
    ids = [i for text in texts for i in tokenizer.encode(text, bos=True, eos=True)]
    return Tokens(np.array(ids), tokenizer.vocab_size)


def good_answers(seed, n):
    cut = [text.split("? ", 1) for text, _ in forum.documents(seed, n)]
    return [f"{q}? {a}" for q, a in cut if forum.quality(f"{q}?", a) >= 3]

# %% train
good, unseen = row(good_answers(5, 2000)), row(good_answers(6, 400))


def train(model, tokens, steps, max_lr, make=AdamW, **options):
    optimizer = make([p for p in model.parameters() if p.requires_grad],
                     weight_decay=0.0, **options)
    batches, losses = Batches(tokens, 16, 48, seed=0), []
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, max_lr, warmup_steps=10)
        if step % 14 == 0:
            losses.append(held_out_loss(model, unseen, seq_len=48))
        tokens_BT, targets_BT = batches(step)
        loss = cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
    return [*losses, held_out_loss(model, unseen, seq_len=48)]


torch.manual_seed(0)
base = Transformer(ModelConfig(64, 2, 4, 512, hidden_dim=128), torch_attention)
train(base, row(general), 112, 6e-3)
lora, everywhere = copy.deepcopy(base), ("attention.*", "feed_forward.*")
qlora = copy.deepcopy(base)
quantize_linears(qlora)

# %% tune
from minillama.plots import CONTRAST, OURS, figure, show

for model in (lora, qlora):
    torch.manual_seed(1)
    add_lora(model, LoRAConfig(8, targets=everywhere))
twin, qlora.gradient_checkpointing = copy.deepcopy(qlora), True
codes = qlora.layers[0].attention.wq.base.codes.clone()
curves = {"LoRA": train(lora, good, 70, 1e-2),
          "QLoRA": train(qlora, good, 70, 1e-2, PagedAdamW, resident_bytes=LEAST)}
train(twin, good, 70, 1e-2)  # plain AdamW, nothing computed twice
same = all(map(torch.equal, qlora.parameters(), twin.parameters()))
state = 8 * sum(p.numel() for p in qlora.parameters() if p.requires_grad)
print(f"paged: {LEAST:,} of {state:,} bytes of state in memory; same bits: {same}")
gap = curves["QLoRA"][-1] - curves["LoRA"][-1]
for name, losses in curves.items():
    print(f"{name:6}" + " ".join(f"{loss:.3f}" for loss in losses))

picture, axes = figure("QLoRA learns as LoRA does, on a quarter of the base",
                       "training step", "loss on unseen good answers, nats")
for (name, losses), colour, style in zip(curves.items(), (CONTRAST, OURS), "-:",
                                         strict=True):
    axes.plot(range(0, 71, 14), losses, style, color=colour, marker="o", ms=4)
    place = 20, losses[0] - (0.06 if name == "LoRA" else 0.13)
    axes.annotate(f"{name}, base of {gb[name][0]:.1f} GB at 65B", place, color=colour)
axes.set(xlim=(-1, 72))
show(picture, f"After 70 steps LoRA {curves['LoRA'][-1]:.3f} nats, QLoRA "
     f"{curves['QLoRA'][-1]:.3f}")

# %% [markdown] exercise
# **The price is time**: each layer is unpacked twice a step, three times with
# checkpointing. And an adapter trained so belongs to *this* base, rounding errors and
# all: merged into the unrounded weights, it mends errors that are not there.
#
# **Exercise.** Write the way through the wall and back, and the memory budget, in
# `lessons/exercises/ex24_qlora.py`. Then `python3 run.py check 24`.

# %% closing
frozen = [p for p in qlora.parameters() if not p.requires_grad]
assert all(p.grad is None for p in frozen) and len(lora_layers(qlora)) == 14
assert torch.equal(codes, qlora.layers[0].attention.wq.base.codes)
assert round(by_formula, 1) == 33.7 and round(gb["QLoRA"][0], 1) == 34.5
assert round(gb["LoRA"][0]) == 131
assert sum(gb["QLoRA"]) < 48 < sum(gb["LoRA"]) and abs(gap) < 0.05 and same
assert curves["LoRA"][0] - curves["LoRA"][-1] > 0.2
print(f"You should see: 65B in {by_formula:.1f} GB, {sum(gb['QLoRA']):.1f} with all "
      f"that learns (below 48); a gap of {abs(gap):.3f} nats (below 0.05); no slope "
      "in the base; the paged optimizer equal to the bit")
