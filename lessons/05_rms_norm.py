# %% [markdown] question
# # 05 · RMSNorm
# Covers: `minillama/rms_norm.py`, `tests/test_rms_norm.py`, `bench/warm_up.py`
# Needs: 00
# Time: 6 s
# Teaches: RMSNorm, LayerNorm, pre- and post-norm, warm-up, learned gain, epsilon, fp16 overflow
# Paper: [Zhang and Sennrich 2019](https://arxiv.org/abs/1910.07467), equation 4
#
# **Question.** Inside a LLaMA each token is a vector, a list of numbers. In the model
# with 7 billion weights (*7B*) it passes 64 *sub-layers*, 32 pairs of attention and
# feed-forward, and each adds something to it. Before a sub-layer reads the vector,
# LLaMA divides it by one number. What is that division for?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $D$ | `D` | | model width: numbers per token (4096 in LLaMA-7B) |
# | $x$ | `x` | (..., D) | the vector of a token; $x_i$ is its $i$-th number |
# | $g$ | `gain` | (D,) | the gain: one learned factor per place, 1 at the start |
# | $\epsilon$ | `eps` | | a tiny number (1e-6 or 1e-5) that prevents division by zero |
# | $y$ | `y` | (..., D) | the result |
#
# `(..., D)` means: the last axis has D places; axes before it, if any, list tokens.
# %% naive
import math

import torch

from minillama.plots import CONTRAST, OURS, figure, label_end, show
from minillama.rms_norm import RMSNorm

torch.manual_seed(0)


def naive(x, gain, eps):
    """One token: a list of numbers in, a list of numbers out."""
    mean_square = sum(number * number for number in x) / len(x)
    size = math.sqrt(mean_square + eps)
    return [number / size * factor for number, factor in zip(x, gain, strict=True)]


for x in ([3.0, 4.0], [300.0, 400.0], [0.0, 0.0]):
    print(x, "->", [round(number, 3) for number in naive(x, [1.0, 1.0], 1e-6)])
# %% [markdown] formula
# That one number is the **root mean square**, RMS: square, take the mean, take the
# root. It is the typical size of an entry of $x$.
#
# $$y_i = \frac{x_i}{\sqrt{\frac{1}{D} \sum_{j=1}^{D} x_j^2 + \epsilon}} \; g_i$$
# ascii: y_i = x_i / sqrt(mean_j(x_j^2) + eps) * g_i
#
# `[3, 4]` and `[300, 400]` gave the same result, to three digits. The division
# keeps the direction of the vector and forgets its length. And zero stays zero: without
# $\epsilon$, it would be 0/0.
#
# The gain is *learned*, like any weight; nobody sets it by hand. With it a model can
# make one entry of the vector larger and set another to zero.
# %% agree
D = 64
norm = RMSNorm(D, eps=1e-6).double()
x = torch.randn(5, D, dtype=torch.float64) * 7
with torch.no_grad():
    norm.weight.uniform_(0.5, 2.0)
    y = norm(x)
    gain = norm.weight.tolist()
    wanted = torch.tensor([naive(row, gain, 1e-6) for row in x.tolist()])
    assert (y - wanted).abs().max() < 1e-6  # the library's module is our loop
    assert (norm(100 * x) - y).abs().max() < 1e-6  # the size of x is forgotten
    lengths = (y / norm.weight).norm(dim=-1)
print(f"length before the gain: {lengths[0]:.4f}, sqrt(D): {math.sqrt(D):.4f}")
assert (lengths - math.sqrt(D)).abs().max() < 1e-5
# %% [markdown] layer_norm
# **LayerNorm**, which GPT-2 and BERT use, subtracts the mean of $x$ first, so that the
# entries sum to zero, and adds a learned number to each place after the gain, the
# *bias*. RMSNorm leaves both out: less to compute, and in the paper's experiments about
# as good. On a vector whose mean is zero, they agree, up to the bias.
#
# **Why fp32 inside.** Large models are often run in 16-bit floats (fp16). These end at
# 65,504, and $300^2$ = 90,000 is beyond that. So the library squares in 32-bit floats
# (fp32), and rounds only the result back.
# %% traps
centred = x - x.mean(-1, keepdim=True)
layer_norm = torch.nn.functional.layer_norm(x, (D,), eps=1e-6)
plain = RMSNorm(D, eps=1e-6).double()
assert (plain(centred) - layer_norm).abs().max() < 1e-12

half = torch.tensor([300.0, 400.0], dtype=torch.float16)
careless = half / (half.pow(2).mean() + 1e-6).sqrt()  # the mean of squares is infinite
careful = RMSNorm(2).half()(half).detach()
print("fp16 squares:", careless.tolist(), "  fp32 squares:", careful.tolist())
assert careless.tolist() == [0.0, 0.0] and abs(careful[0].item() - 3 / 12.5**0.5) < 1e-3
# %% [markdown] stream
# **Where it stands.** Write $f$ for a sub-layer. It never replaces the vector of a
# token: it adds to it. The running sum is called the **residual stream**.
#
# $$x \leftarrow x + f(\mathrm{RMSNorm}(x))$$
# ascii: x <- x + f(RMSNorm(x))
#
# This is **pre-norm**: $f$ reads a normalised copy, and the stream itself is not
# divided on the way.
#
# How fast does the stream grow? Take the simplest $f$: one random matrix that keeps the
# size of what it reads. Then $f$ adds a vector in an unrelated direction, and squared
# lengths add up (Pythagoras). Start with RMS 1, and let $L$ be the number of these $f$,
# called layers here. *Without* the norm, what a layer adds is as large as the stream:
# the squared RMS doubles each time and ends at $2^L$, so the RMS is $2^{L/2}$. *With*
# it, each layer adds 1 to the squared RMS, and the RMS is $\sqrt{1+L}$. For $L = 32$
# that is 65,536 against 5.7. (With 64 sub-layers, as in LLaMA-7B: $2^{32}$, 4 billion,
# against $\sqrt{65}$, 8.) Let us see.
# %% growth
def random_layer(width):
    """A matrix that keeps the size of what it reads, on average."""
    return torch.randn(width, width) / math.sqrt(width)


def stream_sizes(use_norm, layers=32, width=256):
    x, norm, sizes = torch.randn(16, width), RMSNorm(width), [1.0]
    for _ in range(layers):
        x = x + (norm(x) if use_norm else x) @ random_layer(width)
        sizes.append(x.pow(2).mean().sqrt().item())
    return sizes


without, with_norm = stream_sizes(False), stream_sizes(True)
print(f"RMS after 32 layers: {without[-1]:,.0f} without, {with_norm[-1]:.2f} with")
assert 0.8 < without[-1] / 2**16 < 1.25 and 0.95 < with_norm[-1] / 33**0.5 < 1.05

title = "One division keeps the stream small"
picture, axes = figure(title, "layer", "RMS of the stream")
curves = (without, "no norm", CONTRAST), (with_norm, "pre-norm", OURS)
for sizes, name, colour in curves:
    axes.semilogy(sizes, color=colour)
    label_end(axes, range(33), sizes, name, colour)
axes.set_xlim(0, 38)
show(picture, f"After 32 layers the stream's RMS is {without[-1]:,.0f} without a norm, "
              f"{with_norm[-1]:.2f} with it")
# %% [markdown] post_norm
# The first Transformer and BERT normalised *after* the sum (by LayerNorm):
# $x \leftarrow \mathrm{RMSNorm}(x + f(x))$, called **post-norm**. That too keeps sizes
# at 1. So why did GPT-2, then LLaMA and most others move the norm? (Pre-norm is older
# than LLaMA; RMSNorm in that place is what LLaMA chose.)
#
# Look at the *gradient* of the last layer's weights (how much the loss changes with
# each of them) before any training. A pre-norm model ends with one more norm. It
# divides the whole stream by $\sqrt{1+L}$, also the small part that the last layer
# added, and that layer's gradient shrinks by the same factor. In post-norm, the last
# norm reads the sum of two vectors of size 1. It divides by only $\sqrt{2}$,
# however deep the model is. The ratio of the two gradients should be $\sqrt{2/(1+L)}$.
#
# [Xiong et al. 2020](https://arxiv.org/abs/2002.04745) prove for a simplified,
# untrained Transformer that the pre-norm gradient falls like $1/\sqrt{L}$. They name
# the large gradients near the top as the reason why post-norm models need a *warm-up*:
# a learning rate that starts near zero and rises over the first steps.
# %% gradients
def last_gradient(pre, layers, width=128):
    torch.manual_seed(0)
    x, norm = torch.randn(64, width), RMSNorm(width)
    weights = [random_layer(width).requires_grad_() for _ in range(layers)]
    for w in weights:
        x = x + norm(x) @ w if pre else norm(x + x @ w)
    (norm(x) * torch.randn(64, width)).mean().backward()
    return weights[-1].grad.norm().item()


depths = (2, 4, 8, 16, 32)
ratios = []
for depth in depths:
    ratios.append(last_gradient(True, depth) / last_gradient(False, depth))
    print(f"{depth:2} layers: pre-norm / post-norm = {ratios[-1]:.3f}, "
          f"predicted {math.sqrt(2 / (1 + depth)):.3f}")
    assert abs(ratios[-1] * math.sqrt((1 + depth) / 2) - 1) < 0.1

import json

from minillama.course.lesson import ROOT

path = ROOT / "bench" / "warm_up.json"
runs, gains = json.loads(path.read_text())["seeds"], {}
for norm in ("pre-norm", "post-norm"):
    bare, warmed = ([run[f"{norm}, {how}"]["held_out"] for run in runs]
                    for how in ("none", "warm-up"))
    gains[norm] = [a - b for a, b in zip(bare, warmed, strict=True)]
    print(f"{norm:9} without warm-up {bare}, with {warmed}")
# %% [markdown] exercise
# **Can the warm-up be dropped?** `bench/warm_up.py` trained a model of eight layers
# with pre-norm and with post-norm, each with and without a warm-up, three seeds each.
# The last lines above are the losses on unseen text, in nats (natural logarithms) a
# character. Pre-norm needs none: with a warm-up it is a little worse after these steps.
# Post-norm is worse than pre-norm for each seed, with a warm-up and without. Leaving it
# out cost post-norm a fifth of a nat for two seeds, and nothing for the third. The cost
# depends on depth, rate and steps: here 120 steps at one rate. LLaMA is
# pre-norm, and keeps a warm-up of 2,000 steps all the same.
#
# **Exercise.** Write the backward pass by hand: given $x$, $g$ and the gradient of the
# loss with respect to $y$, one function returns the gradient with respect to $g$,
# another the gradient with respect to $x$. The trap: every $x_j$ is part of the one
# number that divides all of them.
#
# Open `lessons/exercises/ex05_rms_norm.py`, then run `python3 run.py check 5`.
# %% you_should_see
print(f"You should see: after 32 layers the stream's RMS is {without[-1]:,.0f} "
      f"without a norm and {with_norm[-1]:.2f} with it;")
print(f"the last layer's gradient at 32 layers is {ratios[-1]:.2f} of post-norm's.")
assert 52_000 < without[-1] < 82_000 and 5.4 < with_norm[-1] < 6.0
assert 0.22 < ratios[-1] < 0.28
assert sorted(gains["post-norm"])[1] > 0.1 and max(gains["pre-norm"]) < 0
