# %% [markdown] question
# # 28 · Other ways to learn from feedback
# Covers: `lessons/other_feedback.py`, `tests/test_alternatives.py`
# Needs: 25, 27
# Time: 10 s
# Teaches: best of n and its KL, rejection sampling, rule rewards, DPO, chain of hindsight
# Paper: [Nakano et al. 2021](https://arxiv.org/abs/2112.09332), best of n beside learning
#
# **Question.** PPO needs four models in memory and many settings. What else turns a
# judge's opinion into better texts, and at what price?
#
# The price is the same for all: how far the new policy has gone from the old one, in
# nats of KL. So all ways can stand in one picture.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $p$ | `reference` | (K,) | probability of each of K texts, before learning |
# | $q$ | `q` | (K,) | the same after |
# | $s$ | `score` | (K,) | the judge's points for each text |
# | $F(s)$ | `upto` | | probability of a text with at most $s$ points |
# | $n$ | `n` | | texts written, of which the best is kept |
# | $\beta$ | `beta` | | price of a nat |

# %% world
import itertools

import torch

WORDS = "the cat saw nice happy .".split()
V, T = len(WORDS), 6
START = torch.full((V, V), 0.03)  # row: this word; column: the next
for line in ("the cat nice happy", "cat saw . nice", "saw the nice",
             "nice cat .", "happy cat .", ". the happy"):
    word, *following = map(WORDS.index, line.split())
    START[word, following] = 1.0
START = (START / START.sum(1, keepdim=True)).double().log()
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=T)))  # all there are
STEPS = torch.cat([torch.full((len(TEXTS), 1), V - 1), TEXTS], 1)


def probabilities(table):
    """(K,): every text's probability; a word depends on the one before (a bigram)."""
    steps = table.log_softmax(-1)[STEPS[:, :-1], STEPS[:, 1:]]
    return steps.sum(1).exp()


kind = (TEXTS == WORDS.index("nice")) | (TEXTS == WORDS.index("happy"))
score = kind.sum(1).double()  # the judge is a rule: it counts kind words
truth = score - 2 * (kind[:, 1:] & kind[:, :-1]).sum(1)  # people dislike two in a row
reference = probabilities(START)
print(f"{len(TEXTS)} texts; sum of probabilities {reference.sum():.6f}")

# %% naive
torch.manual_seed(0)
drawn = torch.multinomial(reference, 4 * 20000, replacement=True).view(20000, 4)
best = drawn.gather(1, score[drawn].argmax(1, keepdim=True))[:, 0]
for name, rows in (("one text", drawn[:, 0]), ("best of 4", best)):
    words = " ".join(WORDS[i] for i in TEXTS[rows[0]])
    print(f"{name:10} judge {score[rows].mean():.2f}, people {truth[rows].mean():.2f}"
          f"   {words}")

# %% [markdown] formula
# **Best of n** learns nothing: write $n$ texts, show the one the judge likes best. All
# $n$ stay within $s$ points with probability $F(s)^n$, so the best has exactly $s$ with
# $$q(s) = F(s)^n - F(s-)^n$$
# ascii: q(s) = F(s)^n - F(below s)^n
#
# and texts of equal score share that as before. If no two texts were ever alike, the
# KL would be the same for every judge and every model:
# $$\text{KL}(q, p) = \ln\, n - \frac{n - 1}{n}$$
# ascii: KL(q, p) = ln n - (n - 1) / n
#
# Papers quote this as the KL. It is an upper bound: where texts or scores repeat, the
# best of n differs less from the rest. 16 texts cost at most 1.84 nats.

# %% module
from lessons.other_feedback import best_of_n_bound, best_of_n_policy, kl_divergence

q = best_of_n_policy(reference, score, 4)
upto = [reference[score <= s].sum().item() for s in range(T + 1)]
for s in range(T + 1):
    below = upto[s - 1] if s else 0.0
    assert abs(q[score == s].sum().item() - (upto[s] ** 4 - below ** 4)) < 1e-12
exact, sampled = (q @ score).item(), score[best].mean().item()
print(f"best of 4: judge {exact:.3f} exactly, {sampled:.3f} sampled; "
      f"KL {kl_divergence(q, reference):.3f}, bound {best_of_n_bound(4):.3f}")

# %% [markdown] experiment
# **Experiment.** Four ways that do learn, from the same start and judge:
#
# * *Expert iteration* (Llama 2: rejection sampling): tune on your own best of n, again
#   and again.
# * *Tuning on the preferred* texts of pairs. *Chain of hindsight* reads both texts of a
#   pair, each under its name (`Good:`, `Bad:`), and is asked for a good one; here that
#   comes to the same, for a table would keep a row for each name.
# * *DPO*: make the preferred likelier, the other less likely, without a judge.
# * *Policy gradient*, what PPO does, here without noise. *RLOO* and *GRPO* do it too,
#   without PPO's value model: several answers to one question are held against each
#   other (`rlhf/grpo.py`; `ppo --algorithm`).
#
# The judge may be people, a *rule* as here, or another model (*AI feedback*): it is all
# one to them. The dotted curve is the most that anyone can get for a nat,
# $q \propto p \, e^{s/\beta}$, for every price $\beta$.

# %% learners
from minillama.rlhf.dpo import dpo_loss


def tuned(q):
    """The table under which texts of q are likeliest: count what follows what."""
    counts = torch.full((V * V,), 1e-9, dtype=torch.float64)
    for t in range(T):
        counts.index_add_(0, STEPS[:, t] * V + STEPS[:, t + 1], q)
    return counts.view(V, V).log().log_softmax(-1)


def expert_iteration(n=4, rounds=2):
    table = START
    for _ in range(rounds):
        table = tuned(best_of_n_policy(probabilities(table), score, n))
        yield table


def ascent(loss, steps=60, lr=0.05, every=10):
    table = START.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(table).backward()
        optimizer.step()
        if step % every == every - 1:
            yield table.detach().clone()

# %% preferred
pairs = torch.multinomial(reference, 8000, replacement=True).view(4000, 2)
pairs = pairs[score[pairs[:, 0]] != score[pairs[:, 1]]]  # ties say nothing
order = score[pairs].argsort(1, descending=True)
chosen, rejected = pairs.gather(1, order).T


def penalized(table, beta=0.25):
    q = probabilities(table)
    return beta * (q * (q / reference).log()).sum() - q @ score


def dpo(table):
    now, then = probabilities(table).log(), reference.log()
    return dpo_loss(now[chosen], now[rejected], then[chosen], then[rejected], beta=0.5)

# %% measure
preferred = torch.bincount(chosen, minlength=len(TEXTS)).double() / len(chosen)
ways = {"expert iteration": expert_iteration(), "DPO": ascent(dpo),
        "policy gradient": ascent(penalized),
        "preferred, hindsight": [tuned(preferred)]}
points = {name: [probabilities(table) for table in tables]
          for name, tables in ways.items()}
points["best of n"] = [best_of_n_policy(reference, score, n) for n in (2, 4, 8, 16, 64)]
limits = [torch.softmax(reference.log() + score / beta, 0)
          for beta in (9, 3, 2, 1.5, 1, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2)]


def measured(q):
    return kl_divergence(q, reference), (q @ score).item(), (q @ truth).item()


ends = {name: measured(qs[-1]) for name, qs in points.items()}
for name, (kl, judged, true) in ends.items():
    print(f"{name:20} {kl:4.2f} nats: judge {judged:.2f}, people {true:+.2f}")

# %% figure
from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS, figure, show

picture, axes = figure("Every way pays in nats, and none beats the limit",
                       "KL from the start, nats", "judge's points")
kls, judged, people = zip(*map(measured, limits), strict=True)
axes.plot(kls, judged, ":", color=CONTEXT)
axes.annotate("limit", (4.2, 3.98), (0, 6), color=CONTEXT, textcoords="offset points")
axes.plot(kls, people, "--", color=CONTEXT, linewidth=1)
axes.annotate("people, of the limit's texts", (2.6, 2.2), color=CONTEXT)
colours = dict(zip(points, (CONTRAST, ORACLE, OURS, CONTEXT, CONTEXT), strict=True))
places = {"expert iteration": (4, -14), "DPO": (4, -12), "policy gradient": (-8, 8),
          "preferred, hindsight": (8, -8), "best of n": (-6, 8)}
for name, qs in points.items():
    xs, ys, _ = zip((0, (reference @ score).item(), 0), *map(measured, qs), strict=True)
    axes.plot(xs[len(qs) == 1:], ys[len(qs) == 1:], ".-", color=colours[name])
    axes.annotate(name, (xs[-1], ys[-1]), places[name], textcoords="offset points",
                  color=colours[name], ha="right" if places[name][0] < 0 else "left")
axes.set(xlim=(0, 4.8), ylim=(1.3, 4.2))
show(picture, "Points at nats: " + ", ".join(f"{name} {end[1]:.1f} at {end[0]:.1f}"
                                             for name, end in ends.items()))

# %% [markdown] exercise
# Best of n hugs the limit, and needs no training; but each answer costs n. The others
# pay once. Expert iteration has no KL penalty: only its rounds are few.
#
# A rule is never fooled by strange texts. It pays for exactly what is written in it,
# and that is not what people meant: the dashed curve, their opinion of the limit's
# texts, rises, and then falls while the judge's points still climb.
#
# On real text: `python3 run.py bench alternatives` draws this picture for the tour's
# model.
#
# **Exercise.** Write best of n and its KL, in
# `lessons/exercises/ex28_other_feedback.py`. Then `python3 run.py check 28`.

# %% closing
start, best_16 = (reference @ truth).item(), measured(points["best of n"][3])
assert abs(exact - sampled) < 0.03 and best_16[0] < best_of_n_bound(16)
assert f"{best_of_n_bound(16):.2f}" == "1.84"
for name, qs in points.items():
    for kl, judged, _ in map(measured, qs):  # nobody beats the limit at its own KL
        near = min((measured(limit) for limit in limits), key=lambda m: abs(m[0] - kl))
        assert judged <= near[1] + 2 * max(0.1, kl - near[0]), name
print(f"You should see: best of 16 at {best_16[0]:.2f} nats, below the bound of 1.84; "
      f"people's points rise from {start:.2f} to {best_16[2]:.2f} there")
