# %% [markdown] question
# # 07 · RoPE
# Covers: `minillama/rope.py`, `tests/test_rope.py`
# Needs: 05
# Time: 5 s
# Teaches: rotary positions, derivation, block matrix, complex form, decay, longer contexts, the two layouts
# Paper: [Su et al. 2021](https://arxiv.org/abs/2104.09864), equations 13 to 16 and 34
#
# **Question.** Attention compares tokens by dot products: a vector called the *query*,
# from the token that looks, times a vector called the *key*, from a token that is
# looked at. A dot product knows nothing of order: "dog bites man" and "man bites dog"
# would get the same scores. LLaMA repairs this by rotating both vectors. How can a
# rotation tell distance?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $d$ | `d` | | width of a query or key (128 in LLaMA-7B), even |
# | $q$, $k$ | `q`, `k` | (d,) | a query and a key |
# | $x$, $y$ | `x`, `turned` | (d,) | one of them before and after its turn |
# | $R(x, m)$ | `turn(x, m)` | (d,) | $x$ with its place $m$ worked in |
# | $m$, $n$ | `m`, `n` | | places of the query's token and of the key's, from 0 |
# | $j$ | `j` | | number of a pair of entries, from 0 to d/2 - 1 |
# | $\theta$ | `theta` | | the base: 10000 (500000 in Llama 3) |
# | $f_j$ | `f` | (d/2,) | how far pair $j$ turns per position, in radians |
# %% naive
import math

import torch

from minillama import rope
from minillama.plots import CONTEXT, INK, OURS, figure, label_end, show

torch.manual_seed(0)


def turn(x, position, theta=10000.0):
    """Rotate each pair of entries (x[0], x[1]), (x[2], x[3]), ... by its own angle."""
    d, turned = len(x), []
    for j in range(d // 2):
        angle = position * theta ** (-2 * j / d)
        a, b = x[2 * j], x[2 * j + 1]
        turned.append(a * math.cos(angle) - b * math.sin(angle))
        turned.append(a * math.sin(angle) + b * math.cos(angle))
    return turned


for position in (0, 1, 2, 100):
    arrows = [round(number, 2) for number in turn([1.0, 0.0, 1.0, 0.0], position)]
    print(f"position {position:3}: first pair {arrows[:2]}, second pair {arrows[2:]}")
# %% [markdown] formula
# Read each pair as an arrow in the plane. At position $m$, pair $j$ turns by the angle
# $m f_j$, where
#
# $$f_j = \theta^{-2j/d}$$
# ascii: f_j = theta^(-2j/d)
#
# $$y_{2j} = x_{2j} \cos(m f_j) - x_{2j+1} \sin(m f_j)$$
# ascii: y_2j = x_2j cos(m f_j) - x_(2j+1) sin(m f_j)
#
# $$y_{2j+1} = x_{2j} \sin(m f_j) + x_{2j+1} \cos(m f_j)$$
# ascii: y_(2j+1) = x_2j sin(m f_j) + x_(2j+1) cos(m f_j)
#
# The first pair turns by 1 radian per position, further pairs more slowly. Written as
# one $d \times d$ matrix, this has a 2 by 2 rotation for each pair along the diagonal,
# and zeros elsewhere. Nobody builds it.
#
# A pair is also one complex number, $x_{2j} + i\, x_{2j+1}$ with $i^2 = -1$. Turning it
# by an angle $\varphi$ is one multiplication by
# $e^{i \varphi} = \cos\, \varphi + i \sin\, \varphi$. The library turns pairs this way,
# and so does `turn_complex` below. Nothing here is learned. (RoPE is by Su and others,
# not by GPT-Neo; the first Transformer had the same $f_j$, in the sines it added.)
# %% agree
d = 128
q, k = torch.randn(2, d).double()
f = rope.rope_frequencies(d)
positions = torch.tensor([0, 1, 57, 2047])
ours = rope.apply_rope(q.expand(4, 1, d), rope.rope_rotations(positions, f))[:, 0]
loop = torch.tensor([turn(q.tolist(), m) for m in positions.tolist()])
print("library and loop agree:", (ours - loop).abs().max().item() < 1e-3)
assert (ours - loop).abs().max() < 1e-3  # fp32 angles: off by 2047 * 6e-8, times |q|
assert torch.equal(ours[0], q)  # position 0: nothing turns
assert (ours.norm(dim=-1) / q.norm() - 1).abs().max() < 1e-6  # lengths are kept

title = "Each pair is a clock hand with a speed of its own"
picture, axes = figure(title, figsize=(5.4, 2.6))
middle = {"ha": "center", "va": "center", "color": INK}
for place, j in enumerate((0, 8, 16)):
    for m in range(6):
        x, y = math.cos(m * f[j]), math.sin(m * f[j])
        axes.plot([3 * place, 3 * place + x], [0, y], color=OURS, alpha=1 - 0.14 * m)
        name = m if j < 16 or m in (0, 5) else ""
        axes.text(3 * place + 1.2 * x, 1.2 * y, name, **middle)
    axes.text(3 * place, -1.6, f"pair {j}, positions 0 to 5", **middle)
axes.set(aspect="equal", ylim=(-1.8, 1.6))
axes.set_axis_off()
show(picture, f"Per position pair 0 turns by 1 radian, pair 16 by {f[16]:.1f}")
assert (f[[0, 8, 16]] - torch.tensor([1.0, 0.3162, 0.1])).abs().max() < 1e-4
# %% [markdown] distance
# **The rotation is found, not guessed.** We want scores that depend on the two places
# only through their distance $m - n$. So there must be a function $g$ with
#
# $$R(q, m) \cdot R(k, n) = g(q, k, m - n), \qquad R(x, 0) = x$$
# ascii: R(q, m) . R(k, n) = g(q, k, m - n),  R(x, 0) = x
#
# Take vectors of two entries: arrows.
#
# 1. Let $m = n$. The score is $g(q, k, 0)$ at every place, as at place 0: $q \cdot k$.
#    With $k = q$: arrows keep their lengths. So the angle between them is kept too.
# 2. So a place either turns all arrows by one angle $\varphi(m)$, or mirrors them. We
#    leave mirrors out.
# 3. Between $R(q, m)$ and $R(k, n)$, the angle has changed by
#    $\varphi(m) - \varphi(n)$. It may depend on $m - n$ alone, so each place adds the
#    same angle: $\varphi(m) = m f$ for some $f$. The series of $f_j$ above is a choice.
#
# As complex numbers: $R(a, m) = a\, e^{i m f_j}$. The dot product
# of two arrows $a$ and $b$ is the real part of $a \, \mathrm{conj}(b)$, where conj
# flips the sign of $i$, and so of every angle. For $A = R(a, m)$, $B = R(b, n)$:
#
# $$\mathrm{Re}(A \, \mathrm{conj}(B)) = \mathrm{Re}(a \, \mathrm{conj}(b) \, e^{i (m-n) f_j})$$
# ascii: Re(A conj(B)) = Re(a conj(b) e^(i (m-n) f_j))
#
# **Values** (lesson 08), what a token hands over, are not turned: they arrive the same
# from anywhere.
# %% shift
def turn_complex(x, position):
    pairs = torch.view_as_complex(x.reshape(-1, 2))  # (d,) -> (d/2,) complex
    rotations = torch.exp(1j * position * f.double())  # e^(i m f_j)
    return torch.view_as_real(pairs * rotations).flatten()


assert (turn_complex(q, 57) - torch.tensor(turn(q.tolist(), 57))).abs().max() < 1e-4


def score(m, n):
    pairs = zip(turn(q.tolist(), m), turn(k.tolist(), n), strict=True)
    return sum(a * b for a, b in pairs)


scores = [score(m, m - 5) for m in (7, 100, 2000)]
spread = max(scores) - min(scores)
print("five apart, at 7, 100 and 2000:", [round(s, 6) for s in scores])
print(f"six apart: {score(7, 1):.6f}")
assert spread < 1e-11 and abs(score(7, 1) - scores[0]) > 0.1
# bf16, a 16-bit float, has no 257: places and angles need more bits
assert torch.tensor(257).bfloat16().item() == 256
# %% [markdown] clocks
# **A clock with 64 hands.** Pair $j$ comes full circle after $2\pi / f_j$ positions.
# The fast pairs tell neighbours apart; the slow ones tell near from far.
#
# The scores of all pairs are added. Take a query and a key that are alike, all ones:
# pair $j$ contributes $2\cos((m-n) f_j)$. With distance, one cosine after another drops
# from 1. So alike vectors score less, the further apart they are. That is a tendency,
# not a law (lesson 08).
#
# **Longer contexts.** Beyond the trained length, slow pairs reach angles that training
# never showed. The cure is to turn more slowly, and to train a little more: divide all
# places by a factor (*position interpolation*), use a larger $\theta$ (Llama 3, from
# the start), or slow down only the slow pairs (Llama 3.1).
# %% decay
turns = 2 * math.pi / f
slow = 2 * math.pi / rope.rope_frequencies(d, theta=500000.0)[-1]
print(f"full circle after {turns[0]:.1f} positions (first pair) to {turns[-1]:,.0f} "
      f"(last);\nwith Llama 3's theta, the last pair takes {slow:,.0f}")
assert round(turns[0].item(), 1) == 6.3 and round(turns[-1].item()) == 54_410
assert 2.5e6 < slow < 2.6e6
last = rope.rope_rotations(torch.tensor([2000, 8000 / 4]), f)  # position 8000, 4 times
assert torch.equal(last[0], last[1])  # slower, has the angles of position 2000
steps = torch.arange(1, 1001)
cosines = torch.cos(steps[:, None] * f)
decay = cosines.mean(1)
shown = {n: round(decay[n - 1].item(), 2) for n in (1, 10, 100, 1000)}
print("score at a distance, as a share of that at 0:", shown)
assert shown == {1: 0.97, 10: 0.67, 100: 0.48, 1000: 0.16}

title = "Alike tokens score less, the further apart they are"
picture, axes = figure(title, "distance in tokens", "share of the score at distance 0")
for j, last in ((16, 40), (32, 300)):
    axes.semilogx(steps[:last], cosines[:last, j], color=CONTEXT, linewidth=1)
    label_end(axes, steps[:last], cosines[:last, j], f"pair {j} alone", CONTEXT)
axes.semilogx(steps, decay, color=OURS)
label_end(axes, steps, decay, "all 64 pairs", OURS)
axes.set_xlim(1, 5000)
show(picture, f"The mean over all pairs falls from 0.97 at distance 1 to {shown[1000]}")
# %% [markdown] layouts
# **Two layouts, one trap.** Which entries form a pair is a convention. Meta's weights
# pair neighbours: 0 with 1, 2 with 3 (*interleaved*). Hugging Face's pair entry $j$
# with $j + d/2$ (*half-split*). Scores are the same, if the rows of the weights that
# make $q$ and $k$ are reordered to match.
#
# Mixing the layouts raises no error. Only position 0 is right: nothing turns there.
# %% two_layouts
rotations = rope.rope_rotations(torch.arange(100), f)
x = torch.randn(100, 1, d)
order = rope.half_split_order(d)
print("half-split order of 8 entries:", rope.half_split_order(8).tolist())
meta = rope.apply_rope(x, rotations)
hugging_face = rope.apply_rope_half_split(x[..., order], rotations)
assert torch.equal(meta[..., order], hugging_face)  # the same turn, other columns

mixed = rope.apply_rope_half_split(x, rotations)  # weights of one, code of the other
error = (mixed - meta).norm(dim=-1)[:, 0] / meta.norm(dim=-1)[:, 0]
share = error[20:].mean().item()
print(f"mixed up: error {error[0]:.0%} at position 0, {share:.0%} beyond 20")
assert error[0] == 0 and 1.1 < share < 1.35  # an unrelated vector: 141 % off
# %% [markdown] exercise
# **Exercise.** Write three functions. The first returns vectors turned in the
# half-split layout, without complex numbers. The other two return the rows of a weight
# matrix reordered from Meta's layout to Hugging Face's, and back. A matrix holds
# several *heads* (lesson 08), each $d$ rows high, and each is reordered for itself.
#
# Open `lessons/exercises/ex07_rope.py`, then run `python3 run.py check 7`.
# %% you_should_see
print(f"You should see: equal scores at equal distance, to 1e-11: {spread < 1e-11};")
print(f"shares of {shown[10]}, {shown[100]}, {shown[1000]} at distance 10, 100, 1000;")
print(f"with mixed layouts, {share:.0%} error beyond position 20, none at position 0.")
assert spread < 1e-11 and shown[1000] == 0.16 and error[0] == 0 and share > 1.1
