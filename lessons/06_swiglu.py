# %% [markdown] question
# # 06 · SwiGLU
# Covers: `minillama/swiglu.py`, `tests/test_swiglu.py`
# Needs: 05
# Time: 12 s
# Teaches: feed-forward layer, ReLU, GELU, Swish, the GLU family, the two-thirds rule
# Paper: [Shazeer 2020](https://arxiv.org/abs/2002.05202), equations 5 and 6
#
# **Question.** After attention, each token passes alone through a *feed-forward layer*:
# widen the vector by a matrix, bend each number (by an *activation function*), narrow
# it again. (Without a bend, two matrices in a row would be one matrix.) The first
# Transformer bent with ReLU, which sets negative numbers to zero. LLaMA widens the
# vector twice and multiplies the two results, one as a *gate* for the other. What does
# such a gate add to ReLU?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $D$, $F$ | `D`, `F` | | model width, feed-forward width (4096 and 11008 in 7B) |
# | $x$ | `x` | (..., D) | what the layer reads: the vector of one token |
# | $W_1$, $W_3$ | `w1`, `w3` | (F, D) | two ways up: the gate, and what passes it |
# | $W_2$ | `w2` | (D, F) | the way down |
# | $a$ | `a` | | one number, before the bend |
# | $\sigma(a)$ | `sigmoid(a)` | | sigmoid: $1/(1+e^{-a})$, from 0 to 1 |
# | $\beta$ | `beta` | | how sharp the bend of Swish is |
# %% naive
import math

import torch
from torch.nn.functional import gelu, relu, silu

from minillama.config import hidden_dim_rule
from minillama.plots import CONTEXT, CONTRAST, OURS, bars, figure, label_end, show
from minillama.swiglu import SwiGLU


def swish(a, beta=1.0):
    return a / (1 + math.exp(-beta * a))  # a sigmoid(beta a)


def dot(row, x):
    return sum(weight * number for weight, number in zip(row, x, strict=True))


def naive_relu(x, w1, w2):
    return [dot(row, [max(0.0, dot(up, x)) for up in w1]) for row in w2]


def naive_swiglu(x, w1, w2, w3):
    hidden = [swish(dot(gate, x)) * dot(up, x) for gate, up in zip(w1, w3, strict=True)]
    return [dot(row, hidden) for row in w2]


x, one = [1.0, -2.0], [[1.0, 0.0], [0.0, 1.0]]
print("ReLU:", naive_relu(x, one, one))
print("SwiGLU:", [round(number, 3) for number in naive_swiglu(x, one, one, one)])
# %% [markdown] formula
# The feed-forward network (FFN) with ReLU, without biases:
#
# $$\mathrm{FFN}(x) = W_2 \max(0, W_1 x)$$
# ascii: FFN(x) = W2 max(0, W1 x)
#
# A smooth relative of ReLU is **Swish**, $a$ times a sigmoid. With $\beta = 1$ it is
# also called **SiLU**:
#
# $$\mathrm{Swish}_\beta(a) = a \, \sigma(\beta a)$$
# ascii: Swish_beta(a) = a sigmoid(beta a)
#
# A **gated linear unit** (GLU) sends $x$ up twice and multiplies place by place,
# written $\odot$: $W_3 x$ says what, the gate says how much of it. With SiLU on the
# gate it is **SwiGLU**:
#
# $$\mathrm{SwiGLU}(x) = W_2 \, (\mathrm{SiLU}(W_1 x) \odot W_3 x)$$
# ascii: SwiGLU(x) = W2 (SiLU(W1 x) * W3 x), * place by place
#
# Its relatives differ in the bend on the gate: sigmoid (GLU), none (bilinear), ReLU
# (ReGLU), GELU (GEGLU; GELU is explained below).
# %% agree
torch.manual_seed(0)
D, F = 6, 10
layer = SwiGLU(D, F).double()
tokens = torch.randn(3, D, dtype=torch.float64)
weights = [w.weight.tolist() for w in (layer.w1, layer.w2, layer.w3)]
loop = torch.tensor([naive_swiglu(x, *weights) for x in tokens.tolist()])
print("library and loop agree:", bool((layer(tokens) - loop).abs().max() < 1e-6))
assert (layer(tokens) - loop).abs().max() < 1e-6
# %% [markdown] bends
# **The bends.** $\beta$ is a dial: at 0, Swish is the straight line $a/2$; the larger
# it is, the closer to ReLU. **GELU**, used by GPT and BERT, is $a$ times the
# probability that a standard normal number is below $a$. It is nearly Swish with
# $\beta = 1.702$.
#
# ReLU is flat on the left: a row of $W_1$ whose product is negative for all inputs gets
# no gradient, and can stay dead for good. The smooth ones dip below zero and keep a
# slope there, except at their lowest point; far to the left it fades.
# %% curves
a = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
lowest = silu(a).min().item()
at = a[silu(a).argmin()].item()
gap = (gelu(a) - a * torch.sigmoid(1.702 * a)).abs().max().item()
sharp = (a * torch.sigmoid(100 * a) - relu(a)).abs().max().item()
print(f"SiLU is lowest at {at:.2f}, with {lowest:.3f};")
print(f"GELU and Swish_1.702 differ by {gap:.3f} at most, ReLU and Swish_100 "
      f"by {sharp:.3f}")
assert round(at, 2) == -1.28 and round(lowest, 3) == -0.278
assert round(gap, 3) == 0.020 and round(sharp, 3) == 0.003

picture, axes = figure("SiLU is a ReLU that keeps a slope", "a", "after the bend")
seen = a.abs() <= 3
for bend, colour, dy in ((relu, CONTRAST, 9), (gelu, CONTEXT, -3), (silu, OURS, -14)):
    y = bend(a)[seen]
    axes.plot(a[seen], y, color=colour)
    name = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}[bend.__name__]
    label_end(axes, a[seen], y, name, colour, dy)
axes.set_xlim(-3, 3.6)
show(picture, f"SiLU dips to {lowest:.3f} at a = {at:.2f}, where ReLU is 0")

picture, axes = figure("Swish goes from a line to ReLU as beta grows", "a", "Swish(a)")
for beta, dy in ((0, 0), (0.5, -10), (1, -5), (5, 8)):
    y = (a * torch.sigmoid(beta * a))[seen]
    colour = OURS if beta == 1 else CONTEXT
    axes.plot(a[seen], y, color=colour)
    label_end(axes, a[seen], y, f"beta = {beta}", colour, dy)
axes.set_xlim(-3, 4.6)
show(picture, "Swish over beta: a / 2 at 0, SiLU at 1, close to ReLU at 5")
# %% [markdown] width
# **Three matrices for the price of two.** The old layer widened to $4D$: $2 \cdot 4D^2$
# weights. SwiGLU has a third matrix. To keep the number of weights, LLaMA takes two
# thirds of the width, $F = \frac{2}{3} \cdot 4D$. It rounds that up to a multiple of
# 256, which suits the hardware and costs a little. Llama 2 70B, which saves weights in
# attention (lesson 08), spends them here: it multiplies by 1.3 before it rounds, to a
# multiple of 4096.
# %% widths
old, new = 2 * 4 * 4096**2, 3 * 4096 * hidden_dim_rule(4096)
print(f"weights at D = 4096: {old / 1e6:.1f} million plain, {new / 1e6:.1f} gated")
widths = (hidden_dim_rule(4096), hidden_dim_rule(5120),
          hidden_dim_rule(8192, multiple_of=4096, ffn_dim_multiplier=1.3))
print("F for 7B, 13B and Llama 2 70B:", widths)
assert (old, new) == (134_217_728, 135_266_304) and widths == (11008, 13824, 28672)
# %% [markdown] home
# **Who is better?** A fair race with equally many weights: 3072 each, at D = 16 (so F
# is 96 for ReLU and 64 for SwiGLU). There are two targets to learn. One is made of
# products, $(Ax) \odot (Bx)$ with random matrices $A$ and $B$. The other is made of
# ReLU, $C \max(0, Ax)$, with one more random matrix $C$. We measure the share of the
# target's variance that is left unexplained: 0 % is perfect. What would you bet?
#
# ReLU has to build a product out of many straight pieces. A gate simply multiplies. But
# a sharp kink is hard for a smooth gate.
# %% race
def train(gated, target, D=16, steps=500):
    """The share of the target's variance that is left unexplained on unseen inputs."""
    F = 64 if gated else 96
    shapes = [(F, D), (D, F), (F, D)][:3 if gated else 2]
    w = [(torch.randn(shape) / shape[1]**0.5).requires_grad_() for shape in shapes]
    optimizer = torch.optim.Adam(w, lr=0.01)
    for step in range(steps + 1):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        x = torch.randn(256 if step < steps else 5000, D)
        up = x @ w[0].T
        y, wanted = (silu(up) * (x @ w[2].T) if gated else relu(up)) @ w[1].T, target(x)
        loss = (y - wanted).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item() / wanted.var().item()


A, B, C = torch.randn(3, 16, 16) / 4
targets = {"products": lambda x: (x @ A.T) * (x @ B.T),
           "ReLU": lambda x: relu(x @ A.T) @ C.T}
left = {(name, gated): train(gated, target) for name, target in targets.items()
        for gated in (False, True)}
for name in targets:
    print(f"made of {name:9} unexplained: {left[name, False]:.1%} by ReLU, "
          f"{left[name, True]:.1%} by SwiGLU")
# %% [markdown] exercise
# Each wins at home. Which target is language more like? No formula tells; an experiment
# had to. With language models of equal size and cost, the paper's table 1 has GEGLU and
# SwiGLU first, by a small margin. The author, Shazeer, offers no explanation, and
# credits "divine benevolence". (PaLM used SwiGLU before LLaMA; it is not PaLM's own.)
#
# **Exercise.** Write two functions. One returns the width $F$ for a given $D$. The
# other returns the slope of SiLU at each entry of a tensor, which training needs. (The
# slope of $\sigma(a)$ is $\sigma(a) (1 - \sigma(a))$.)
#
# Open `lessons/exercises/ex06_swiglu.py`, then run `python3 run.py check 6`.
# %% you_should_see
rows = [(f"{'SwiGLU' if gated else 'ReLU'} learns {name}", 100 * share,
         OURS if gated else CONTRAST) for (name, gated), share in left.items()]
picture = bars("Each layer wins on its home ground", rows, "% of variance unexplained")
relu_1, gate_1, relu_2, gate_2 = (f"{percent:.1f} %" for _, percent, _ in rows)
show(picture, f"Products: ReLU leaves {relu_1}, SwiGLU {gate_1}; ReLU's own target: "
              f"{relu_2} and {gate_2}")
print(f"You should see: {old / 1e6:.1f} and {new / 1e6:.1f} million weights;")
print(f"on products ReLU leaves {relu_1} unexplained, SwiGLU {gate_1};")
print(f"on ReLU's own target it is {relu_2} against {gate_2}.")
assert rows[0][1] > 4 * rows[1][1] and rows[3][1] > 8 * rows[2][1]
