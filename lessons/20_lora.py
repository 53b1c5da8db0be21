# %% [markdown] question
# # 20 · LoRA
# Covers: `minillama/peft/lora.py`, `tests/peft/test_lora.py`
# Needs: 10
# Time: 30 s
# Teaches: low rank, adapters, A and B, the zero start, alpha / r, targets, merging
# Paper: [Hu et al. 2021](https://arxiv.org/abs/2106.09685), equation 3
#
# **Question.** A trained model of seven billion weights should learn a new style. Must
# all seven billion change?
#
# LoRA (*low-rank adaptation*) changes none of them. Beside a frozen matrix it lays two
# thin ones and trains only those. Thin: a matrix of 4096 by 4096 gets one of 8 by 4096
# and one of 4096 by 8, 256 times fewer numbers.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $x$ | `x` | (in,) | what the layer reads |
# | $W_0$ | `W0` | (out, in) | its trained weight, frozen |
# | $A$ | `A` | (R, in) | first thin matrix, starts at random |
# | $B$ | `B` | (out, R) | second thin matrix, starts at zero |
# | $r$ | `R` | | their common width, the *rank* |
# | $\alpha$ | `alpha` | | scale: the adapter's output is multiplied by $\alpha / r$ |
# | $h$ | `h` | (out,) | what the layer returns |

# %% naive
import torch

torch.manual_seed(0)
n_in, n_out, R, alpha = 40, 24, 4, 8.0
W0, x = torch.randn(n_out, n_in), torch.randn(n_in)
A, B = torch.randn(R, n_in) / n_in**0.5, torch.zeros(n_out, R)

h = W0 @ x + (alpha / R) * (B @ (A @ x))
assert torch.equal(h, W0 @ x)  # B is zero: training starts from the old model exactly

B = torch.randn(n_out, R)  # as if it had been trained
h = W0 @ x + (alpha / R) * (B @ (A @ x))
W = W0 + (alpha / R) * (B @ A)  # the same as one matrix
print(f"adapter beside the weight, or added to it: {(h - W @ x).abs().max():.1e} apart")
print(f"rank of the change: {torch.linalg.matrix_rank(W - W0).item()}")

# %% [markdown] formula
# $$h = W_0 x + \frac{\alpha}{r} B A x$$
# ascii: h = W0 x + (alpha / r) B A x
#
# $B A$ has the shape of $W_0$ but only a rank of $r$ at most: whatever $x$ is, the
# change of $h$ lies in a space of $r$ directions, the columns of $B$.
#
# - One of the two must start at zero, so that the first output is unchanged. Not both:
#   the gradient of each is a product with the other, and nothing would ever move.
# - Dividing by $r$ keeps the size of the adapter's output about the same when $r$ is
#   changed, so the learning rate can stay.
# - In use, $W_0 + \frac{\alpha}{r} B A$ can be computed once. Then LoRA costs no time
#   at all. Or keep one base and swap small adapters, one for each task.

# %% module
from torch import nn

from minillama.config import preset
from minillama.peft.lora import LoRAConfig, LoRALinear, add_lora, merge_lora

linear = nn.Linear(n_in, n_out, bias=False)
linear.weight = nn.Parameter(W0)
layer = LoRALinear(linear, LoRAConfig(rank=R, alpha=alpha))
layer.A.data, layer.B.data = A, B
assert torch.allclose(layer(x), h, atol=1e-5)

big = preset("llama_7b")  # rank 8 on the query and value projections of all 32 layers
trained = big.n_layers * 2 * 8 * (big.dim + big.dim)
share = trained / big.n_parameters()
print(f"LLaMA 7B: {trained:,} of {big.n_parameters():,} weights train, {share:.3%}")

# %% [markdown] experiment
# **Experiment.** A small LLaMA learns to write stories and forum posts. Then it should
# learn a style: only *good* answers, which are polite, to the point, and in two steps,
# as in "Happy to help! First ... Then ..." (a program makes the forum, and knows the
# hidden quality of each answer). We train all its weights and, in other runs, only LoRA
# of rank 1, 2, 4 and 8 on every linear layer of every block.

# %% data
import copy

import numpy as np
from torch.nn.functional import cross_entropy

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.corpus import forum, mixture
from minillama.tokenizer import train_bpe
from minillama.train.data import Batches, Tokens
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW, clip_gradients
from minillama.train.perplexity import held_out_loss
from minillama.transformer import Transformer

mixed = [document.text for document in mixture(0, 900)]
tokenizer = train_bpe(mixed, 512)


def good(seed, n):
    cut = [text.split("? ", 1) for text, _ in forum.documents(seed, n)]
    return [f"{q}? {a}" for q, a in cut if forum.quality(f"{q}?", a) >= 3]


def row(texts):
    ids = [i for text in texts for i in tokenizer.encode(text, bos=True, eos=True)]
    return Tokens(np.array(ids), tokenizer.vocab_size)


data = {"general": row(mixed), "good": row(good(5, 2000)), "unseen": row(good(6, 600))}

# %% measure
def train(model, tokens, steps, max_lr):
    """The loss after training, and the numbers kept: weights, gradients, AdamW's."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(trained, weight_decay=0.0)
    batches = Batches(tokens, 16, 48, seed=0)
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, max_lr, warmup_steps=10)
        tokens_BT, targets_BT = batches(step)
        loss = cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(trained, 1.0)
        optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    kept = list(model.parameters()), gradients, optimizer.m + optimizer.v
    return (held_out_loss(model, data["unseen"], seq_len=48),
            [sum(tensor.numel() for tensor in tensors) for tensors in kept])


def lora(rank, gaussian=False):
    """The base with LoRA on every linear layer, A from either distribution."""
    model = copy.deepcopy(base)
    targets = ("attention.*", "feed_forward.*")
    add_lora(model, LoRAConfig(rank, alpha=2.0 * rank, targets=targets))
    for layer in model.modules():
        if gaussian and isinstance(layer, LoRALinear):  # as wide as the flat one
            nn.init.normal_(layer.A, std=(3 * layer.in_features) ** -0.5)
    return model

# %% compare
torch.manual_seed(0)
base = Transformer(ModelConfig(64, 2, 4, 512, hidden_dim=128), torch_attention)
before, _ = train(base, data["general"], 120, 6e-3)
full, after, kept = copy.deepcopy(base), {}, {}
after["full"], kept["full"] = train(full, data["good"], 70, 3e-3)
for rank in (1, 2, 4, 8):
    model = lora(rank)
    after[rank], kept[rank] = train(model, data["good"], 70, 1e-2)
    closed = (before - after[rank]) / (before - after["full"])
    print(f"rank {rank}: {kept[rank][1]:6,} of {base.config.n_parameters():,} weights "
          f"close {closed:.0%} of the gap")
gaussian, _ = train(lora(8, gaussian=True), data["good"], 70, 1e-2)
print(f"rank 8, loss with A drawn uniformly {after[8]:.3f}, from a Gaussian "
      f"{gaussian:.3f}: no matter")
for name in ("full", 8):
    print(f"kept, {name:4}: weights {kept[name][0]:7,}, gradients {kept[name][1]:7,}, "
          f"AdamW {kept[name][2]:7,}")

# %% figure
from minillama.plots import CONTEXT, CONTRAST, OURS, figure, show

ranks = [1, 2, 4, 8]
picture, axes = figure(f"Rank 8 closes {closed:.0%} of the gap to full tuning", "rank",
                       "loss on unseen good answers, nats a token")
axes.plot(ranks, [after[rank] for rank in ranks], color=OURS, marker="o")
axes.annotate("LoRA", (8, after[8]), (6, 8), textcoords="offset points", color=OURS)
for height, name, colour in ((before, "before tuning", CONTEXT),
                             (after["full"], "all weights trained", CONTRAST)):
    axes.axhline(height, color=colour, linestyle="--", linewidth=1.2)
    axes.annotate(name, (1, height), (0, 4), textcoords="offset points", color=colour)
axes.set(xticks=ranks, xlim=(0.8, 9), ylim=(after["full"] - 0.05, before + 0.05))
show(picture, f"LoRA of rank 8 closes {closed:.0%} of the gap that full tuning closes")

# %% [markdown] exercise
# **What is saved.** Training all weights keeps three numbers beside each: a gradient
# and AdamW's two means. The frozen base has none of them. So a 7B in 16 bits, 13.5 GB,
# can be tuned with 67 MB more (4.2 million weights with their three numbers, 16 bytes
# in fp32), where full tuning takes some 100 GB (lesson 18). LoRA saves hardly any
# memory for *activations* (what layers keep for the backward pass), and of the base's
# products only those for the gradient of $W_0$.
#
# **Is the full change of low rank, then?** Only in part, as the last cell measures. It
# need not be. LoRA does not imitate the full change. It finds another one, of low rank,
# that serves nearly as well. The paper found ranks of 1 to 8 enough even for GPT-3.
#
# Alpaca-LoRA, the program that made LoRA popular for LLaMA, adapts only the query and
# value projections by default.
#
# **Exercise.** Write four functions: the adapter beside its weight, for a batch of
# rows; the adapter merged into the weight, and taken out again; and the count of
# numbers that train. A merged weight may have 16 bits while $A$ and $B$ have 32. Then
# the sum is taken in 32 bits and rounded once: first rounding $B A$ to 16 bits would
# round twice. Open `lessons/exercises/ex20_lora.py`, then run
# `python3 run.py check 20`.

# %% closing
tokens_BT = Batches(data["unseen"], 2, 48, seed=0)(0)[0]
model.eval()
with torch.no_grad():
    beside, lost = model(tokens_BT), merge_lora(model)
    error = ((model(tokens_BT) - beside).norm() / beside.norm()).item()
change = full.layers[0].attention.wq.weight - base.layers[0].attention.wq.weight
power = torch.linalg.svdvals(change.detach()).square()
chance = torch.linalg.svdvals(torch.randn(64, 64)).square()
inside, by_chance = (x[:8].sum().item() / x.sum().item() for x in (power, chance))
print(f"8 of 64 directions hold {inside:.0%} of a full change of wq, "
      f"{by_chance:.0%} of a random matrix")
assert trained == 4_194_304 and f"{trained / big.n_parameters():.3%}" == "0.062%"
assert kept["full"][1:] == [kept["full"][0], 2 * kept["full"][0]]
assert kept[8][2] == 2 * kept[8][1] and kept[8][1] < 0.13 * kept["full"][1]
assert abs(gaussian - after[8]) < 0.02  # nats: 3 % of the loss
assert error < 1e-5 and by_chance + 0.1 < inside < 0.8 and closed > 0.75
assert before > after[1] > after[2] > after[4] > after[8] > after["full"] - 0.02
print("You should see: 0.062% of a 7B train; "
      f"rank 8 closes {closed:.0%} of the gap (82 to 85 from three seeds); "
      f"a merged model the same to {error:.0e} (below 1e-5)")
