# %% [markdown] question
# # 22 · Eight bits
# Covers: `minillama/quant/int8.py`, `minillama/checkpoint/placement.py`, `bench/eight_bits.py`
# Needs: 10
# Time: 5 s
# Teaches: bytes per weight, row-wise absmax, int8 products, outlier columns, LLM.int8()
# Paper: [Dettmers et al. 2022](https://arxiv.org/abs/2208.07339), sections 2 and 3
#
# **Question.** The weights of LLaMA 7B take 27 GB as 32-bit numbers and 13.5 GB as
# 16-bit ones. How can they halve once more, and the model still say the same?
#
# With 8 bits a number has 256 values. We keep whole numbers from -127 to 127, and
# beside each row one ordinary number, the *scale*, that says how large 127 is.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $x$ | `x` | (rows, K) | what the layer reads, K numbers for each token |
# | $W$ | `W` | (out, K) | its weight |
# | $s$ | `absmax` | (rows,) | the largest magnitude of each row |
# | $c$ | `codes` | (rows, K) | whole numbers, -127 to 127 |
# | $O$ | `columns` | (any,) | columns of $x$ that hold an outlier |

# %% naive
import torch

generator = torch.Generator().manual_seed(0)
W = torch.randn(512, 1024, generator=generator) / 32
x = torch.randn(64, 1024, generator=generator)


def to_int8(rows):
    absmax = rows.abs().amax(1)
    return torch.round(rows / absmax[:, None] * 127).to(torch.int8), absmax


codes, absmax = to_int8(W)
again = codes.float() * absmax[:, None] / 127
weight_error = ((again - W).norm() / W.norm()).item()
print(f"{W.dtype} {W.nbytes:,} bytes -> {codes.dtype} {codes.nbytes:,} and "
      f"{absmax.nbytes:,} for the scales; error {weight_error:.4f}")

# %% [markdown] formula
# A row's values are $w_i \approx c_i \, s / 127$. The same is done to $x$, row by row;
# $s_x, c^x$ belong to a row of $x$, $s_W, c^W$ to one of $W$. Then the product of two
# rows is a sum of whole numbers, which a CPU does fast and exactly, and two
# multiplications put the scales back:
# $$y = \frac{s_x s_W}{127^2} \sum_i c^x_i c^W_i$$
# ascii: y = s_x s_W / 127^2 * sum over i of c_x[i] c_W[i]
#
# **The catch.** The step between two values is $s / 127$, so the largest number of a
# row sets the coarseness for all others. From some billions of parameters on, language
# models put very large values, in most tokens, into the same few columns of $x$. One
# such value of 60 among values near 1, and most of the others round to -2, -1, 0, 1 or
# 2.
#
# **LLM.int8()** takes those columns out. A column of $x$ with a value of size 6 or more
# is multiplied in 16 bits; all others in 8:
# $$y = \sum_{i \in O} x_i w_i + \frac{s_x s_W}{127^2} \sum_{i \notin O} c^x_i c^W_i$$
# ascii: y = sum over outliers of x_i w_i + s_x s_W / 127^2 * sum over the rest of c_x c_W

# %% module
import math

from minillama.quant.int8 import quantize_int8, quantize_rows

ours = quantize_rows(W)
assert torch.equal(ours[1], absmax) and (ours[0].int() - codes.int()).abs().max() <= 1
stored = quantize_int8(W, threshold=math.inf)  # never take a column out
x_codes, x_absmax = to_int8(x)
y = (x_codes.double() @ codes.double().T).float()  # whole numbers, exact
y = y * x_absmax[:, None] * absmax / 127**2
assert torch.allclose(stored.product(x), y, atol=1e-3)

# %% [markdown] experiment
# **Experiment.** One column of $x$ is made larger and larger, from 1 to 100, in every
# row. How wrong is the product, with and without the outlier taken out?

# %% measure
sizes = [1, 2, 4, 5.9, 6, 8, 16, 32, 64, 100]
errors = {"plain int8": [], "outlier apart": []}
for size in sizes:
    loud = x.clamp(-5, 5)
    loud[:, 7] = size
    exact = loud.double() @ W.double().T
    rest = exact - loud[:, 7:8].double() * W[:, 7].double()  # the other columns
    for name, threshold in (("plain int8", math.inf), ("outlier apart", 6.0)):
        wrong = quantize_int8(W, threshold).product(loud).double() - exact
        errors[name].append((wrong.norm() / rest.norm()).item())
for row in zip(sizes, *errors.values(), strict=True):
    print("column {:5}   plain {:.3f}   apart {:.3f}".format(*row))

# %% figure
from minillama.plots import CONTRAST, OURS, figure, label_end, show

picture, axes = figure("One loud column ruins int8, unless it is kept apart",
                       "size of the loud column", "error of the product, relative")
for (name, values), colour in zip(errors.items(), (CONTRAST, OURS), strict=True):
    axes.loglog(sizes, values, color=colour, marker="o", markersize=3)
    label_end(axes, sizes, values, name, colour)
axes.axvline(6, color="grey", linewidth=0.8, linestyle=":")
axes.annotate("threshold 6", (6, 0.12), (-70, 0), color="grey",
              textcoords="offset points")
axes.set(xlim=(0.9, 420), xticks=[1, 6, 10, 100], xticklabels=["1", "6", "10", "100"],
         yticks=[0.01, 0.1], yticklabels=["1 %", "10 %"])
axes.minorticks_off()
show(picture, f"Error with a column of 100: {errors['plain int8'][-1]:.2f} plain, "
     f"{errors['outlier apart'][-1]:.3f} with the column apart")

# %% memory
from minillama.config import preset
from minillama.system.memory import weights_bytes

big = preset("llama_7b")
gigabytes = {kind: weights_bytes(big, kind) / 1e9 for kind in ("fp32", "fp16", "int8")}
print({kind: f"{size:.1f} GB" for kind, size in gigabytes.items()})

# %% [markdown] loading
# **The same in other words.** Many programs load LLaMA by the transformers library.
# Line by line, our flags beside its words:
#
# | there | here |
# |---|---|
# | `load_in_8bit=True` | `--load-8bit`: the linear layers in int8, as above |
# | `torch_dtype=torch.float16` | `--dtype float16`: what is not in int8 |
# | `device_map="auto"` | `--device-map auto`: whole layers on GPUs, CPU, then disk |
# | `device_map={"": "mps"}` | `--device mps`: there, but untested |
# | `model.half()` | `--dtype float16` again: nothing is converted afterwards |
# | `model.eval()` | no flag: `generate` and `chat` never drop anything out |
# | `PeftModel.from_pretrained` | `--adapter DIR` |
#
# **What do 8 bits cost a real model?** `bench/eight_bits.py` measured two on one text,
# each in three forms: the perplexity, and the loss (nats a token) beyond that of fp32.

# %% quality
import json

from minillama.course.lesson import ROOT

path = ROOT / "bench" / "eight_bits.json"
models = json.loads(path.read_text())["models"]
for name, forms in models.items():
    for form, row in forms.items():
        print(f"{name:22} {form:4}  perplexity {row['perplexity']:6.3f}  "
              f"{row['more']:+.4f} nats, give or take {row['error']:.4f}")

# %% [markdown] exercise
# Eight bits cost at most a fortieth of a nat a token, hardly more than chance; four
# bits (NF4) cost about a tenth or more. (SmolLM2's file is in 4 bits itself, and was
# rounded twice.)
#
# int8 is a little more than half of fp16: the embedding table and the output head stay
# in 16 bits here, and each row has its scale.
#
# The rounding costs about 1 % of the product, and networks tolerate more. But the
# loud column must not set the scale. The blue line still rises a little: all our
# weights are stored in int8, so the loud column is multiplied by rounded weights. The
# paper keeps the weights of outlier columns in 16 bits too.
#
# **Exercise.** Write the split product in `lessons/exercises/ex22_int8.py`. Then
# `python3 run.py check 22`.

# %% closing
plain, apart = errors.values()
assert 0.006 < weight_error < 0.0085 and abs(gigabytes["fp16"] - 13.48) < 0.01
assert abs(gigabytes["fp32"] - 26.95) < 0.01 and 6.7 < gigabytes["int8"] < 7.1
for forms in models.values():
    assert forms["int8"]["more"] < 0.03 < forms["NF4"]["more"]
assert max(apart) < 0.03 and plain[-1] > 0.15 and plain[3] == apart[3]
print(f"You should see: 13.5 GB become {gigabytes['int8']:.1f}; int8 weights off by "
      f"{weight_error:.4f} (0.006 to 0.0085); "
      f"a column of 100 costs {plain[-1]:.0%} plain (above 15), "
      f"{apart[-1]:.1%} kept apart (below 3)")
