"""Checks of exercise 17: by the library, and by hand where the numbers are small."""
import random

from minillama.course.exercise import close
from minillama.evaluate.likelihood import chosen
from minillama.evaluate.standard_error import mean_and_error, paired_difference

HINTS = {
    "mean_and_error": ("First the mean, then the spread around it, then divide by the root of n.",
                       "The spread has n - 1 below the root: the mean came from the same values.",
                       "E = sqrt(sum of (x - m)^2 / (n - 1) / n)"),
    "paired_error": ("Make one list: the difference of each item.",
                     "It is the standard error of that list, not one made of the two models' errors."),
    "items_needed": ("Solve E = sqrt(m (1 - m) / n) for n.",
                     "A part of an item cannot be asked: round up."),
    "choice_per_character": ("Divide each log-likelihood by the number of characters of its text.",
                             "They are below 0: the largest is the one nearest to 0."),
}


def answers(seed, n):
    rng = random.Random(seed)
    return [float(rng.random() < 0.6) for _ in range(n)]


def check_mean_and_error(learner):
    for values in ([1.0, 0.0], [3.0, 1.0, 2.0], answers(0, 30), answers(1, 400)):
        got, wanted = learner.mean_and_error(values), mean_and_error(values)
        close(f"mean of {values[:4]}...", got[0], wanted[0], 1e-12, 0)
        close(f"standard error of {len(values)} values, {values[:4]}...", got[1], wanted[1], 1e-12,
              1 if len(values) > 2 else 2)


def check_paired_error(learner):
    for n in (5, 80):
        ours, theirs = answers(2, n), answers(3, n)
        theirs = [our if i % 3 else their for i, (our, their) in enumerate(zip(ours, theirs, strict=True))]
        close(f"paired error of {n} items", learner.paired_error(ours, theirs), paired_difference(ours, theirs)[1],
              1e-12, 1)
    close("paired error of a model against itself", learner.paired_error(ours, ours), 0.0, 0, 0)


def check_items_needed(learner):
    for accuracy, error, wanted in ((0.5, 0.05, 100), (0.5, 0.01, 2500), (0.6, 0.01, 2400), (0.63, 0.015, 1036)):
        got = float(learner.items_needed(accuracy, error))
        close(f"items_needed({accuracy}, {error})", got, float(wanted), 0, 1 if abs(got - wanted) <= 1 else 0)


def check_choice_per_character(learner):
    for sums, texts in (([-6.0, -7.5], ["Rome", "Paris, the capital"]), ([-4.0, -4.0], ["ab", "cd"]),
                        ([-9.0, -2.0, -8.0], ["a b c d e", "f", "ghij"]), ([-3.0, -5.0], ["中文", "abc"]),
                        ([-3.0, -4.0], ["中文", "abc"])):
        wanted = chosen(sums, texts, [1] * len(texts))["acc_norm"]
        close(f"choice_per_character({sums}, {texts})", float(learner.choice_per_character(sums, texts)),
              float(wanted), 0, 1 if sums[0] == -9.0 else 0)


WRONG = [
    ("(len(values) - 1)", "len(values)", "mean_and_error", 2),
    ("math.sqrt(variance / len(values))", "variance / len(values)", "mean_and_error", 2),
    ("[our - their for", "[our + their for", "paired_error", 1),
    ("math.ceil(", "math.floor(", "items_needed", 1),
    ("/ error**2", "/ error", "items_needed", 0),
    ("total / len(text)", "total", "choice_per_character", 0),
    ("index(max(shares))", "index(min(shares))", "choice_per_character", 0),
    ("sum(values) / len(values)", "sum(values) / (len(values) - 1)", "mean_and_error", 0),
    ("mean_and_error(differences)[1]", "mean_and_error(differences)[0]", "paired_error", 1),
    ("mean_and_error(differences)[1]",
     "math.hypot(mean_and_error(ours)[1], mean_and_error(theirs)[1])", "paired_error", 1),
    ("accuracy * (1 - accuracy)", "accuracy", "items_needed", 0),
    ("len(text)", "len(text.encode())", "choice_per_character", 0),
    ("len(text)", "len(text.split())", "choice_per_character", 0),
]
