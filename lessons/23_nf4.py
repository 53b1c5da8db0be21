# %% [markdown] question
# # 23 · NF4
# Covers: `minillama/quant/nf4.py`, `tests/quant/test_nf4.py`
# Needs: -
# Time: 4 s
# Teaches: 4-bit levels, absmax, blocks, quantiles, NormalFloat, double quantization
# Paper: [Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), section 3
#
# **Question.** Four bits can name 16 numbers. Which 16 should we keep, if the weights
# of a network are to be replaced by the nearest of them?
#
# The weights of a trained layer look much like a bell curve: many small, few large.
# Evenly spaced levels, as on a ruler, would waste codes where hardly any weight lies.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $w$ | `w` | (blocks, 64) | weights, 64 to a block |
# | $s$ | `absmax` | (blocks, 1) | the largest magnitude of each block |
# | $q_i$ | `levels` | (16,) | the levels, in [-1, 1] |
# | $c$ | `codes` | (blocks, 64) | which level each weight takes, 0 to 15 |
# | $Q$ | `Q` | | quantile: a share $p$ of the bell curve lies below $Q(p)$ |

# %% naive
import torch

generator = torch.Generator().manual_seed(0)
w = torch.randn(8192, 64, generator=generator)  # half a million weights, bell curve


def round_to(levels, w, scale=None):
    """Each weight's nearest level times the scale, its block's absmax; the codes."""
    levels = torch.tensor(levels)
    scale = w.abs().amax(1, keepdim=True) if scale is None else scale
    codes = torch.bucketize(w / scale, (levels[:-1] + levels[1:]) / 2)
    return levels[codes] * scale, codes


def relative_error(levels, w=w):
    return ((round_to(levels, w)[0] - w).norm() / w.norm()).item()


ruler = [i / 7 for i in range(-7, 8)]  # int4, evenly spaced: -7 ... 7
print(f"evenly spaced: error {relative_error(ruler):.4f} of the weights' size")

# %% [markdown] formula
# A weight is kept as $s \, q_c$: a level times the absmax of its block. The scale is
# shared by 64 weights only, so one huge weight coarsens 63 neighbours and no more.
#
# If the bell curve is cut into slices of equal probability and each slice gets one
# level, all levels are used equally often. The levels are then *quantiles*:
# $$q_i = Q(p_i) / Q(p_{max}), \qquad p_i \text{ evenly spaced on each side of } 0.5$$
# ascii: q_i = Q(p_i) / Q(p_max), with the p_i evenly spaced on each side of 0.5
#
# Two wishes break the symmetry. Zero must be a level, because padding and dead weights
# are exactly zero. And all 16 codes should be used. So NF4 takes 8 levels above zero, 7
# below, and zero itself. The outermost probability is a little below 1, since $Q(1)$ is
# infinite: $p_{max} = 1 - \frac{1}{2}(\frac{1}{32} + \frac{1}{30}) = 0.9677083$, 1 less
# the mean of half a sixteenth and half a fifteenth.

# %% levels
from statistics import NormalDist

Q = NormalDist().inv_cdf
p_max = 1 - (1 / 32 + 1 / 30) / 2
above = [Q(0.5 + (p_max - 0.5) * i / 8) for i in range(1, 9)]
below = [-Q(0.5 + (p_max - 0.5) * i / 7) for i in range(7, 0, -1)]
levels = [q / Q(p_max) for q in [*below, 0.0, *above]]
print(" ".join(f"{q:.4f}" for q in levels))

# %% module
from minillama.quant.nf4 import NF4_LEVELS, quantize_nf4

assert max(abs(a - b) for a, b in zip(levels, NF4_LEVELS, strict=True)) < 1e-6
ours, codes = round_to(NF4_LEVELS, w)
stored = quantize_nf4(w, block_size=64, double_quantization=False)
assert torch.allclose(stored.dequantize(), ours, atol=1e-6)
print("two codes share a byte:", stored.codes.dtype, tuple(stored.codes.shape))

# %% [markdown] experiment
# **Experiment.** Three sets of levels on the same half million weights: the ruler, FP4
# (a tiny floating-point number: sign, 2 bits of exponent, 1 of mantissa), and NF4. A
# second number says how well the codes are used: their *entropy*, the number of bits
# that a perfect archiver would need for each. It is 4 only if all 16 are equally
# frequent. (The ruler and FP4 use 15 of the 16 codes: the ruler needs a zero in the
# middle, and FP4 has a second zero, -0.)

# %% measure
fp4 = sorted({sign * x / 6 for sign in (-1, 1) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)})


def entropy(codes):
    p = torch.bincount(codes.flatten(), minlength=16).double() / codes.numel()
    return torch.special.entr(p).sum().item() / torch.log(torch.tensor(2.0)).item()


errors = {}
for name, chosen in (("ruler", ruler), ("FP4", fp4), ("NF4", NF4_LEVELS)):
    errors[name] = relative_error(chosen)
    bits = entropy(round_to(chosen, w)[1])
    print(f"{name:6} error {errors[name]:.4f}   entropy of the codes {bits:.2f} bits")
nf4_bits = bits

used = torch.bincount(codes.flatten()) / codes.numel()
largest = (w.abs().amax(1).mean() / w.std()).item()  # in standard deviations
fitting, fitting_codes = round_to(NF4_LEVELS, w, torch.tensor(Q(p_max)))
fitting_bits, fitting_error = entropy(fitting_codes), (fitting - w).norm() / w.norm()
print(f"NF4's codes are used by {used.min():.1%} to {used.max():.1%} of the weights")
print(f"the largest of 64 weights: {largest:.2f} on average; Q(p_max): {Q(p_max):.2f}")
print(f"scale {Q(p_max):.2f}: {fitting_bits:.3f} bits, error {fitting_error:.3f}")

# %% figure
from minillama.plots import CONTEXT, CONTRAST, OURS, figure, show

scaled = (w / w.abs().amax(1, keepdim=True)).flatten()
heights, edges = torch.histogram(scaled, 200, range=(-1, 1), density=True)
picture, axes = figure("NF4's levels stand close where weights are many",
                       "weight / largest of its block", "density of the weights")
axes.fill_between((edges[:-1] + edges[1:]) / 2, heights, color=CONTEXT, alpha=0.3, lw=0)
axes.vlines(levels, -0.12, 0, color=OURS, lw=2)
axes.vlines(ruler, -0.27, -0.15, color=CONTRAST, lw=2)
axes.annotate(f"NF4, error {errors['NF4']:.3f}", (1.03, -0.06), color=OURS, va="center")
axes.annotate(f"ruler, error {errors['ruler']:.3f}", (1.03, -0.21), color=CONTRAST,
              va="center")
axes.set(xlim=(-1.05, 1.75), ylim=(-0.32, 1.1), xticks=[-1, 0, 1], yticks=[0, 0.5, 1])
show(picture, f"Error of NF4 {errors['NF4']:.3f}, of the ruler {errors['ruler']:.3f}")

# %% [markdown] double
# **Double quantization.** The scales are not free: one fp32 number for 64 weights is
# 32/64 = 0.5 bits a weight. So the scales are quantized too, to 8 bits, in groups of
# 256 with one fp32 scale each. The mean is taken off first, for absmax values are all
# positive and would leave half of the 8-bit levels idle.
# $$4 + \frac{32}{64} = 4.5, \qquad 4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127$$
# ascii: 4 + 32/64 = 4.5 bits a weight;  4 + 8/64 + 32/(64 * 256) = 4.127

# %% double_code
plain, double = stored, quantize_nf4(w)
worse = (double.dequantize() - w).norm() / w.norm()
print(f"{plain.bits_per_weight():.3f} bits a weight, error {errors['NF4']:.4f}")
print(f"{double.bits_per_weight():.3f} bits a weight, error {worse:.4f}")
assert worse / errors["NF4"] < 1.005  # under half a percent more error

# %% [markdown] exercise
# **Is NF4 the best of all?** The paper calls it "information theoretically optimal",
# but the entropy above is below 4 bits. All levels are used equally often if the
# scale is $Q(p_{max})$, 1.85 standard deviations. Ours, the largest of 64 weights, is
# 2.6 on average, so the outer levels are used too rarely. With 1.85 for all blocks, the
# entropy is nearly 4 bits, and yet the error is larger: what lies beyond is cut off.
# Equal use and the smallest error are two aims. NF4 is a very good fixed table.
#
# **Exercise.** In `lessons/exercises/ex23_nf4.py`, derive the 16 levels, and pack two
# codes into each byte, the first in the high half. Then `python3 run.py check 23`.

# %% closing
moved = []  # by other weights, of two more seeds
for seed in (1, 2):
    again = torch.randn(8192, 64, generator=torch.Generator().manual_seed(seed))
    moved += [abs(relative_error(chosen, again) - errors[name]) for name, chosen in
              (("ruler", ruler), ("FP4", fp4), ("NF4", NF4_LEVELS))]
assert max(moved) < 1e-3
assert abs(errors["NF4"] - 0.0920) < 5e-4 and abs(errors["ruler"] - 0.1077) < 5e-4
assert abs(errors["FP4"] - 0.1057) < 5e-4 and abs(nf4_bits - 3.88) < 0.01
assert abs(largest - 2.6) < 0.02 and used.min() < 0.025 and used.max() > 0.085
assert fitting_bits > 3.99 and fitting_error > errors["NF4"] + 0.02
assert plain.bits_per_weight() == 4.5 and abs(double.bits_per_weight() - 4.127) < 5e-4
print(f"You should see: errors NF4 {errors['NF4']:.3f}, FP4 {errors['FP4']:.3f}, ruler "
      f"{errors['ruler']:.3f}, within {max(moved):.4f} from two more seeds;\n"
      f"{nf4_bits:.2f} bits of entropy; 4.5 bits a weight, 4.127 with double "
      "quantization")
