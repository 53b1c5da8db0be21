# %% [markdown] question
# # 17 · Evaluation
# Covers: `minillama/evaluate/standard_error.py`, `minillama/evaluate/likelihood.py`, `minillama/evaluate/judge.py`
# Needs: 15
# Time: 6 s
# Teaches: choice by likelihood, acc_norm, standard error, paired difference, small categories, position bias
# Paper: [LLaMA 2023](https://arxiv.org/abs/2302.13971), section 3
#
# **Question.** A table says: model A 63.8, model B 62.4, on 1,000 questions. Is A
# better?
#
# A benchmark is a sample. Other questions could have been asked, and the two numbers
# would be others. The *standard error* says by how much, and most tables leave it out.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $n$ | `n` | | how many items (questions) there are |
# | $x$ | `values` | (n) | for each item: 1 answered right, 0 wrong |
# | $m$ | `mean` | | their mean: the accuracy |
# | $s$ | `spread` | | their spread (standard deviation) |
# | $d$ | `d` | (n) | for each item: A's result less B's |
# | $E$ | `error` | | the standard error of a mean |

# %% naive
import numpy as np

rng = np.random.default_rng(0)
n, skill = 1000, 0.63
tables = [(rng.random(n) < skill).mean() for _ in range(2000)]  # 2,000 benchmarks
print("the same model on five of them:", *(f"{100 * one:.1f}" for one in tables[:5]))
print(f"spread of all 2,000 accuracies: {100 * np.std(tables):.2f} points")


def mean_and_error_by_hand(values):
    mean = sum(values) / len(values)
    spread = (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
    return mean, spread / len(values) ** 0.5


values = (rng.random(n) < skill).astype(float)
mean, error = mean_and_error_by_hand(values)
print(f"from one benchmark alone: {100 * mean:.1f} +- {100 * error:.2f}")

# %% [markdown] formula
# Nobody has 2,000 benchmarks, and nobody needs them: one is enough to say how far its
# own mean may be off. Independent items with a spread $s$ have a mean that spreads by
# $$E = \frac{s}{\sqrt{n}}$$
# ascii: E = s / sqrt(n)
#
# For answers that are right or wrong, $s$ is $\sqrt{m (1 - m)}$, at most a half. So
# 1,000 items give 1.5 points, and a tenth of that error costs a hundred times the
# items. In about 19 of 20 cases the truth lies within two errors.
#
# Two models are asked *the same* items. What is hard for one is mostly hard for the
# other, so compare them item by item: take $d$, one difference for each item, and its
# own standard error. This *paired* error is smaller than the one that two separate
# samples would have.

# %% module
from minillama.evaluate.likelihood import chosen
from minillama.evaluate.standard_error import mean_and_error, paired_difference

assert np.allclose(mean_and_error(values.tolist()), mean_and_error_by_hand(values))
assert abs(error - (mean * (1 - mean) / (n - 1)) ** 0.5) < 1e-12
assert abs(np.std(tables) - error) < 0.1 * error

# how a model answers: by the choice that it finds likeliest, per character or not
texts, sums = ["Rome", "Paris, the capital"], [-6.0, -7.5]
taken = chosen(sums, texts, [1, 4])
print("taken:", {name: texts[taken[name]] for name in ("acc", "acc_norm")})

# a published table: LLaMA 33B and 65B without examples (table 3 of the paper)
published = {"BoolQ": (3270, 83.1, 85.3), "PIQA": (1838, 82.3, 82.8),
             "SIQA": (1954, 50.4, 52.3), "HellaSwag": (10042, 82.8, 84.2),
             "WinoGrande": (1267, 76.0, 77.0), "ARC-e": (2376, 80.0, 78.9),
             "ARC-c": (1172, 57.8, 56.0), "OBQA": (500, 58.6, 60.2)}
clear = []
for name, (items, small, large) in published.items():
    both = ((small * (100 - small) + large * (100 - large)) / items) ** 0.5
    clear += [name] if abs(large - small) > 2 * both else []
    print(f"{name:10} {small} -> {large}: {large - small:+.1f} +- {both:.1f}")
print(f"more than two errors apart in {len(clear)} of {len(published)} rows:", *clear)

# %% [markdown] experiment
# **Experiment.** A is truly better than B, by 1.4 points. Items differ: most are easy
# or hard for both. We ask both models 1,000 items, many times over, and count how often
# the table has them the wrong way round, and how large the two kinds of error are.

# %% measure
def ask_both(n, gap):
    """0 or 1 for each item: of A and of B, whose chances on an item are close."""
    easy = rng.beta(0.5, 0.3, n)  # chance that a model like these answers it
    shared = rng.random(n)
    own = rng.random((2, n)) < 0.15  # on these items luck is the model's own
    luck = np.where(own, rng.random((2, n)), shared)
    return [(one < easy + more).astype(float).tolist()
            for one, more in zip(luck, (gap / 2, -gap / 2), strict=True)]


differences, paired, separate = [], [], []
for _ in range(400):
    ours, theirs = ask_both(1000, 0.015)
    difference, error = paired_difference(ours, theirs)
    differences.append(difference)
    paired.append(error)
    separate.append(np.hypot(mean_and_error(ours)[1], mean_and_error(theirs)[1]))
wrong = np.mean(np.array(differences) <= 0)
found = np.mean(np.array(differences) > 2 * np.array(paired))
print(f"true difference about {100 * np.mean(differences):.1f} points; error of two "
      f"separate samples {100 * np.mean(separate):.1f}, "
      f"paired {100 * np.mean(paired):.1f}")
print(f"the table has them the wrong way round in {100 * wrong:.0f} of 100 cases, and "
      f"the paired test is sure of A in {100 * found:.0f}")

# %% [markdown] categories
# **Small categories.** An evaluation set for Chinese chat models (Ziya's) has 185
# questions on 32 subjects in 9 groups: about 20 for a group, 6 for a subject. Below,
# ten models that are *equally good* are asked 185 questions, and two equal models are
# compared subject by subject.

# %% categories_measured
n_models, n_items, n_subjects = 10, 185, 32
accuracies = np.sort((rng.random((n_models, n_items)) < 0.6).mean(1))[::-1]
errors = (accuracies * (1 - accuracies) / (n_items - 1)) ** 0.5
first_to_last = accuracies[0] - accuracies[-1]
print("error for a group of 20:", f"{100 * (0.6 * 0.4 / 19) ** 0.5:.0f} points;",
      "for a subject of six:", f"{100 * (0.6 * 0.4 / 5) ** 0.5:.0f} points")
answers = rng.random((200, 2, n_subjects, 6)) < 0.6  # 200 such comparisons
gaps = abs(np.diff(answers.mean(-1), axis=1))
apart = (gaps > 0.3).sum(-1).mean()  # subjects more than 30 points apart
print(f"ten equal models: first {100 * accuracies[0]:.1f}, last "
      f"{100 * accuracies[-1]:.1f}; in {apart:.0f} of 32 subjects two equal models are "
      "more than 30 points apart")

# %% figure
from minillama.plots import CONTEXT, ORACLE, OURS, figure, show

picture, axes = figure("Ten equally good models, 185 questions", "place in the table",
                       "accuracy, per cent")
places = np.arange(1, n_models + 1)
axes.errorbar(places, 100 * accuracies, 200 * errors, fmt="o", color=OURS,
              ecolor=CONTEXT)
axes.axhline(60, color=ORACLE, linestyle="--", linewidth=1.2)
axes.annotate("the truth", (n_models, 60), (0, 4), color=ORACLE, ha="right",
              textcoords="offset points")
axes.set_xticks(places)
show(picture, f"Accuracies of ten equally good models on 185 questions, with two "
     f"standard errors: first and last are {100 * first_to_last:.0f} points apart")

# %% judges
from minillama.evaluate.judge import judge, summarize

# Another kind of table: a model judges two others. This one sees which answer is
# better, and likes what stands first a little more than that: a planted position bias.
worth = {"good": 1, "bad": 0}
pairs = [("?", "good", "bad")] * 12 + [("?", "bad", "good")] * 8  # ours wins 60 in 100


def prefers(shown):
    return [worth[first] - worth[second] + 1.5 for _, first, second in shown]


first_only = np.mean([margin > 0 for margin in prefers(pairs)])
judged = summarize(judge(prefers, pairs))
print(f"ours always first: wins {100 * first_only:.0f} in 100; the other order turns "
      f"{100 * judged.changed:.0f} verdicts round; both orders together: "
      f"{100 * judged.balanced:.0f}")

# %% [markdown] exercise
# **What to ask of a table.** How many items? Were the models compared on the same
# ones? Is a difference larger than two paired errors? Were many rows searched for the
# one that favours a model? Which measure was it: the likelihood of a choice, or that
# per character (`acc_norm`)? Of a judge: who judged what, in which order, with what
# interval? "90 % of the quality" (Vicuna's) is a mean of scores, not nine won cases
# of ten.
#
# `python3 run.py evaluate --model PATH --tasks arc_easy --data DIR --out DIR` does all
# that for your model: each mean with its error and its items, and with `--against` the
# paired difference. `python3 run.py judge --model JUDGE --ours A --theirs B --out DIR`
# lets one model compare the answers of two others, and says what the judge is worth.
#
# **Exercise.** Write both errors, how many items an error needs, and the choice per
# character, in `lessons/exercises/ex17_evaluation.py`. Then `python3 run.py check 17`.

# %% closing
assert np.mean(paired) < 0.7 * np.mean(separate)
assert 0 < wrong < 0.15 and 0.1 < found < 0.9
assert 0.04 < first_to_last < 0.25 and 5 < apart < 14
assert clear == ["BoolQ", "HellaSwag"] and abs(judged.balanced - 0.6) < 1e-9
assert first_only == judged.changed == judged.first_preferred == 1.0
single = mean_and_error(ours)[1]
print(f"You should see: 1,000 items have an error of {100 * single:.1f} points, "
      f"paired {100 * np.mean(paired):.1f}; ten equal models on 185 questions "
      f"are {100 * first_to_last:.0f} points apart, and in {apart:.0f} of 32 subjects "
      "two of them more than 30")
