# %% [markdown] question
# # 16 · Scaling
# Covers: `lessons/scaling_law.py`, `bench/scaling.py`, `tests/test_scaling_law.py`
# Needs: 10, 15
# Time: 30 s
# Teaches: FLOPs of training, compute-optimal and inference-optimal size, fitting a law, isoFLOP curves
# Paper: [Hoffmann et al. 2022](https://arxiv.org/abs/2203.15556) and [its correction](https://arxiv.org/abs/2404.10102)
#
# **Question.** How large a model should I train with the compute that I have, and does
# it change if ten thousand people will use it?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $N$ | `N` | | parameters that a token is multiplied by |
# | $D$ | `D` | | tokens read in training |
# | $C$ | `flops` | | multiplications and additions of training (FLOPs) |
# | $S$ | `served` | | tokens read or written later, when the model is in use |
# | $\ell$ | `loss` | | nats a token on unseen text |
# | $E$ | `law.E` | | the loss that no model can go below |
# | $A, B$ | `law.A`, `law.B` | | how much too few parameters, too few tokens cost |
# | $\alpha, \beta$ | `law.alpha`, `law.beta` | | how fast either fades |
# | $L, W, T$ | `L`, `width`, `T` | | layers, width of attention, length of a text |

# %% count
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillama.config import ModelConfig, preset
from minillama.transformer import Transformer

config, tokens_BT = ModelConfig(64, 4, 4, 512, hidden_dim=176), torch.arange(256)
model = Transformer(config)
with FlopCounterMode(display=False) as counter:  # counts every product of matrices
    model(tokens_BT.view(2, 128)).logsumexp(-1).mean().backward()
gains = (2 * config.n_layers + 1) * config.dim  # of the norms: no products
N = config.n_parameters() - gains - config.vocab_size * config.dim  # - embeddings
L, width, T = config.n_layers, config.n_heads * config.head_dim, 128
six, attending = 6 * N * 256, 12 * L * width * T * 256
print(f"counted {counter.get_total_flops():,}, 6 N D {six:,}, attention {attending:,}")
assert counter.get_total_flops() == six + attending
big = preset("llama_7b")
extra = 2 * big.n_layers * big.dim * 2048 / (big.n_parameters() - 32000 * 4096)
print(f"LLaMA 7B at 2,048 tokens: attention adds {extra:.1%} to 6 N D")

# %% [markdown] formula
# A token is multiplied by each weight once on the way forward, and backward twice (for
# the gradient of what came in, and of the weight): 3 products, 3 sums. So training
# costs $C$, and serving, which goes forward only, $C_{\mathrm{served}}$:
# $$C = 6 N D, \qquad C_{\mathrm{served}} = 2 N S$$
# ascii: C = 6 N D,  C_served = 2 N S
#
# The scores of attention come on top: $12 L W T$ a token, as the count shows, and half
# of that where the upper half of the scores is skipped. The loss falls as $N$ and as
# $D$ grow:
# $$\ell(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
# ascii: loss(N, D) = E + A / N^alpha + B / D^beta
#
# **For training alone** there is one best $N$ for each $C$: a larger model reads too
# little, a smaller one cannot hold what it reads. **For use** a smaller model, trained
# on more tokens than its optimum, costs more once and less for ever after. That is
# LLaMA's bet: 7B on a million million tokens (1 T), 143 for each parameter: seven times
# what the paper's rule says, 20.

# %% fit
def loss_of(law, N, D):
    return law.E + law.A / N**law.alpha + law.B / D**law.beta


import json

from lessons.scaling_law import BESIROGLU, ERRORS, HOFFMANN, best_size, break_even, fit
from minillama.course.lesson import ROOT

points = json.loads((ROOT / "lessons" / "16_scaling.json").read_text())["points"]
kept = sorted(points, key=lambda point: point[2])[:-5]  # as the correction leaves out 5
N, C, losses = (torch.tensor(column, dtype=torch.float64)
                for column in zip(*kept, strict=True))
ours = fit(N, C / (6 * N), losses)
print(" " * 8 + " ".join(f"{name:>9}" for name in ours._fields))
for name, law in (("printed", HOFFMANN), ("refit", BESIROGLU), ("ours", ours)):
    print(f"{name:8}" + " ".join(f"{value:9.4f}" for value in law))
off = [abs(a - b) / e for a, b, e in zip(ours, BESIROGLU, ERRORS, strict=True)]
errors = [(loss_of(law, N, C / (6 * N)) / losses - 1).abs().mean().item()
          for law in (HOFFMANN, ours)]
print(f"ours is within {max(off):.2f} standard errors of the refit; the printed law is "
      f"{errors[0]:.2%} off the points, ours {errors[1]:.2%}")

# %% tables
def best_by_trying(law, flops):
    sizes = torch.logspace(8, 12, 4001, dtype=torch.float64)
    return sizes[loss_of(law, sizes, flops / (6 * sizes)).argmin()].item()


models = {"10B, 0.2 T": (10e9, 2e11), "7B, 1 T": (7e9, 1e12),
          "65B, 1.4 T": (65e9, 1.4e12)}
rules, meets = {}, {}
for name, law in (("printed", HOFFMANN), ("refit", BESIROGLU)):
    N_best, D_best = rules[name] = best_size(law, 6 * 10e9 * 2e11)
    assert abs(N_best / best_by_trying(law, 6 * 10e9 * 2e11) - 1) < 2e-3
    print(f"{name}: best for 1.2e22 FLOPs are {N_best / 1e9:.1f} B parameters and "
          f"{D_best / 1e9:.0f} G tokens, {D_best / N_best:.0f} a parameter")
    print("             loss  training   served  equal, cheapest  cheaper from")
    for label, (N, D) in models.items():
        other, other_D, served = break_even(law, N, D)
        meets[name, label] = served / 1e12
        print(f"  {label:10} {loss_of(law, N, D):.3f}  {6 * N * D:.1e}  {2 * N:.1e}  "
              f"{other / 1e9:4.1f} B, {other_D / 1e12:.2f} T  {served / 1e12:5.2f} T")

# %% [markdown] answers
# The two laws contradict each other, though both describe the same runs. The printed
# one misses the points that it was fitted to; its numbers were rounded, and its
# minimization had stopped early, the correction found. The paper's two other ways of
# estimating say 20 tokens a parameter, and the refit agrees with them.
#
# **Does use change it?** A smaller model is cheaper in all from the number of served
# tokens in the last column. Ten thousand people who read and write 2,000 tokens a day
# are 7,000 million tokens a year, far below that: train what is best for training. Ten
# *million* people are 7 T a year, far above: train a smaller model on more tokens, as
# the figure shows (each label: served tokens, and the best size).
#
# Each row of the table is a model. *served*: FLOPs to serve a token. *equal, cheapest*:
# the model of the same loss that costs least to train. *cheaper from*: the served
# tokens from which the row's model costs less in all than that one (inf: never).

# %% figure
from lessons.scaling_law import cheapest, tokens_for
from minillama.plots import CONTRAST, ORACLE, OURS, figure, label_end, show

target = loss_of(BESIROGLU, 7e9, 1e12)  # as good as 7B on 1 T tokens
picture, axes = figure("The more it is used, the smaller it should be",
                       "parameters, billions", "training and use, FLOPs")
sizes, minima = torch.logspace(9.5, 11, 200, dtype=torch.float64).tolist(), {}
for served, colour in ((0, CONTRAST), (1e12, OURS), (1e13, ORACLE)):
    cost = [N * (6 * tokens_for(BESIROGLU, N, target) + 2 * served) for N in sizes]
    axes.plot([N / 1e9 for N in sizes], cost, color=colour)
    N, D = cheapest(BESIROGLU, target, served)
    minima[served] = N
    axes.plot(N / 1e9, 6 * N * D + 2 * N * served, "o", color=colour)
    label_end(axes, [100], cost[-1:], f"{served / 1e12:.0f} T: {N / 1e9:.1f} B", colour)
axes.set(xscale="log", yscale="log", xlim=(2.8, 250), xticks=[5, 10, 20, 50, 100])
axes.set_xticklabels(["5", "10", "20", "50", "100"])
axes.minorticks_off()
show(picture, "For the loss of 7B on 1 T tokens: " + ", ".join(
    f"{N / 1e9:.1f} B where {S / 1e12:.0f} T are served" for S, N in minima.items()))

# %% [markdown] toy
# **Our own curves.** `bench/scaling.py` trained six sizes on sentences such as "Minoko
# lagumos gubalen." There are 128 names and 128 verbs; the one of rank $r$ is drawn
# with a probability that falls as $r^{-1.5}$. Each of the 16,384 pairs has one object
# for ever. A few pairs are common and most are rare, so some are always left to learn.
# The entropy is the lowest possible loss, and here it is known: $E$ need not be
# guessed. We fit 24 points, six sizes at four budgets, and the law must predict the
# second largest size at four times the largest budget. In brackets: 90% of the laws
# that come from points drawn anew, with repetition, from the 24. We also fit with $E$
# unknown, to see whether that finds the true entropy.

# %% own
record = json.loads((ROOT / "bench" / "scaling.json").read_text())
misses = []
for run in record["seeds"]:
    E, told = run["entropy"], run["far"][0]
    *near, far = run["points"]  # the one beyond the budgets comes last
    columns = [[p[key] for p in near] for key in ("N", "D", "loss")]
    law, free = fit(*columns, E=E), fit(*columns)
    measured, by_law = far["loss"] - E, loss_of(law, far["N"], far["D"]) - E
    nearest = [p["loss"] - E for p in near if p["N"] == far["N"]][-1]
    misses.append([abs(x / measured - 1) for x in (by_law, nearest)])
    print(f"seed {run['seed']}: {measured:.3f} nats above the entropy, law {by_law:.3f}"
          f" ({told['low']:.3f} to {told['high']:.3f}), nearest point {nearest:.3f}")
    print("  " + ", ".join(f"{key} {getattr(law, key):.2f} ({low:.2f} to {high:.2f})"
                           for key, (low, high) in run["spread"].items())
          + f"; E left free: {free.E:.3f}, the truth {E:.3f}")
missed, nearest = (max(column) for column in zip(*misses, strict=True))

# %% curves
budgets = {}
for p in near:
    budgets.setdefault(p["budget"], []).append((p["N"], p["loss"] - E))
picture, axes = figure("Small budgets tell what a larger one gives",
                       "parameters, thousands", "nats above the entropy")
best = {}
for flops, row in budgets.items():
    axes.plot([n / 1e3 for n, _ in row], [y for _, y in row], "o-", color=OURS)
    label_end(axes, [row[-1][0] / 1e3], [row[-1][1]], f"{flops:.1e} FLOPs", OURS)
    best[flops] = min(row, key=lambda point: point[1])[0]
sizes = torch.linspace(6.2e3, 34.6e3, 50)
curve = loss_of(law, sizes, record["far"] / (6 * sizes)) - E
axes.plot(sizes / 1e3, curve, "--", color=CONTRAST)
axes.plot(far["N"] / 1e3, measured, "o", color=ORACLE)
label_end(axes, [34.6], curve[-1:], f"{record['far']:.1e}, by the law", CONTRAST)
axes.set(xscale="log", yscale="log", xlim=(5.8, 90))
axes.set_xticks([10, 20, 30], ["10", "20", "30"])
axes.set_yticks([0.1, 0.2, 0.3], ["0.1", "0.2", "0.3"])
axes.minorticks_off()
show(picture, f"Seed {run['seed']}, and measured (green). Best size at " + ", ".join(
    f"{C:.1e} FLOPs: {n:,}" for C, n in best.items()))

# %% [markdown] exercise
# **Our law works.** We had asked for a tenth; all three seeds keep to it, and what was
# measured lies in the brackets. The nearest fitted point is off by 70 to 81%. The
# smallest budget is at the edge: there the smallest size is the best on two seeds, by
# at most 0.0005 nats. Two tries came before on three seeds each: without that size the
# law missed by 1 to 8%, and in a world of 64 names and verbs, with probabilities that
# fall as $r^{-1}$, by 7 to 14%, always too high. The likely reason there: the list of
# facts was short, and as it runs out the loss falls faster than a power. Left free, $E$
# comes out 0.04 to 0.06 nats below the true entropy. A fit is worth what it predicts
# beyond its points; try that before you spend a budget on it.
#
# **Exercise.** How many tokens bring a model to a loss? Which model reaches a loss and
# serves $S$ tokens at the least cost in all? Write both in
# `lessons/exercises/ex16_scaling.py`. Then `python3 run.py check 16`.

# %% closing
assert max(off) < 1 and abs(rules["refit"][0] / 9.9e9 - 1) < 0.01
assert abs(rules["printed"][0] / 5.6e9 - 1) < 0.01
assert missed < 0.1 and all(law < point for law, point in misses)
assert minima[0] > minima[1e12] > minima[1e13]
printed, refit = (meets[name, "7B, 1 T"] for name in ("printed", "refit"))
assert 0.25 < printed < 0.33 and 0.6 < refit < 0.8
print(f"You should see: the refit again, within {max(off):.2f} standard errors (below "
      f"1); 7B on 1 T is cheaper from {printed:.2f} T served tokens by the printed "
      f"law, from {refit:.2f} T by the refit; our own law misses by {missed:.0%} at "
      f"most, the nearest point by {nearest:.0%}")
