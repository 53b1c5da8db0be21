"""LLM as a judge of two others: which answer to a question is better, and what such verdicts are worth.

A judge sees the two answers in an order, and many prefer the first, or the longer one, whatever they say (arXiv
2306.05685, section 3.3). So each pair is shown in both orders: an answer wins that is preferred in both; where the
order decides, it is a tie. How often it does is the position bias, which is reported and not hidden. A bias that is
the same for all pairs cancels in the sum over both orders: the balanced win rate (arXiv 2305.17926).

How good a judge is can be tried on planted pairs, whose verdict is known: `planted_pairs`.
"""

import math
from statistics import NormalDist, fmean
from typing import NamedTuple

from minillama.evaluate.likelihood import encode_pair, log_likelihoods

PROMPT = ("Question: {question}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
          "Which answer is better, A or B? The better answer is")
GRADE_PROMPT = ("Question: {question}\n\nAnswer: {answer}\n\n"
                "Grade this answer from 1 (useless) to 9 (perfect). The grade is")
GRADES = range(1, 10)  # a digit each: the grade 10 would begin as 1 does


class Verdict(NamedTuple):
    """Of one question: 1 ours is better, 0 theirs, 0.5 a tie; how often the answer shown first was preferred, of two;
    whether the other order turned the preference round; by how much ours was preferred, mean over both orders; and by
    how many characters ours is longer."""

    score: float
    first_preferred: float
    changed: bool
    margin: float
    longer_by: int


class Judgement(NamedTuple):
    """All verdicts in numbers. low, high: interval of the win rate. first_preferred: 0.5 without position bias.
    changed: the share of pairs whose verdict the other order turned round. balanced: the win rate by the sum over both
    orders. longer_preferred: of the decided pairs of unequal length, how often the longer one won; nan where there is
    none."""

    win_rate: float
    low: float
    high: float
    ties: float
    first_preferred: float
    changed: float
    balanced: float
    longer_preferred: float


def preferences(model, tokenizer, shown, batch_size=16):
    """For each (question, first, second): log p(" A") - log p(" B"), above 0 where the first answer is preferred."""
    pairs = [encode_pair(tokenizer, PROMPT.format(question=question, first=first, second=second), f" {letter}")
             for question, first, second in shown for letter in "AB"]
    sums = log_likelihoods(model, pairs, batch_size)
    return [a - b for a, b in zip(sums[::2], sums[1::2], strict=True)]


def grades(model, tokenizer, asked, batch_size=16):
    """For each (question, answer) the mean of the grades 1 to 9, weighted by how likely the model finds each."""
    pairs = [encode_pair(tokenizer, GRADE_PROMPT.format(question=question, answer=answer), f" {grade}")
             for question, answer in asked for grade in GRADES]
    sums, found = log_likelihoods(model, pairs, batch_size), []
    for first in range(0, len(sums), len(GRADES)):
        ours = sums[first:first + len(GRADES)]
        weights = [math.exp(one - max(ours)) for one in ours]
        found.append(sum(grade * weight for grade, weight in zip(GRADES, weights, strict=True)) / sum(weights))
    return found


def both_orders(pairs):
    """[(question, ours, theirs), (question, theirs, ours), ...]: what `preferences` is to be asked."""
    return [shown for question, ours, theirs in pairs for shown in ((question, ours, theirs), (question, theirs, ours))]


def verdict_of(ours, theirs, forward, backward):
    """The `Verdict` on two answers, of the preferences with ours shown first and with theirs shown first."""
    first = [(margin > 0) + 0.5 * (margin == 0) for margin in (forward, backward)]
    ours_preferred = first[0], 1 - first[1]
    score = ours_preferred[0] if ours_preferred[0] == ours_preferred[1] else 0.5
    return Verdict(score, fmean(first), abs(ours_preferred[0] - ours_preferred[1]) == 1, (forward - backward) / 2,
                   len(ours) - len(theirs))


def judge(prefers, pairs):
    """The `Verdict`s on pairs (question, ours, theirs). prefers: f(shown) as `preferences` gives them."""
    margins = prefers(both_orders(pairs))
    return [verdict_of(ours, theirs, *margins[2 * i:2 * i + 2]) for i, (_, ours, theirs) in enumerate(pairs)]


def summarize(verdicts, level=0.95):
    """The `Judgement` that verdicts come to. A tie counts half for each."""
    win_rate = fmean([verdict.score for verdict in verdicts])
    decided = [(verdict.score == 1) == (verdict.longer_by > 0) for verdict in verdicts
               if verdict.score != 0.5 and verdict.longer_by]
    return Judgement(win_rate, *wilson_interval(win_rate, len(verdicts), level),
                     fmean([verdict.score == 0.5 for verdict in verdicts]),
                     fmean([verdict.first_preferred for verdict in verdicts]),
                     fmean([verdict.changed for verdict in verdicts]),
                     fmean([(verdict.margin > 0) + 0.5 * (verdict.margin == 0) for verdict in verdicts]),
                     fmean(decided) if decided else math.nan)


def planted_pairs(pairs):
    """{name: pairs whose verdict is known} from (question, ours, theirs).

    "itself": ours against itself, where every preference is one of position. "repeated": ours, said twice, against
    ours: longer and no better. "stray": ours against our answer to the next question, which is hardly one to this.
    """
    following = [pairs[(i + 1) % len(pairs)][1] for i in range(len(pairs))]
    return {"itself": [(question, ours, ours) for question, ours, _ in pairs if ours],
            "repeated": [(question, f"{ours} {ours}", ours) for question, ours, _ in pairs if ours],
            "stray": [(question, ours, other) for (question, ours, _), other in zip(pairs, following, strict=True)
                      if ours != other]}


def wilson_interval(share, n, level=0.95):
    """(low, high) around a share of n independent trials: Wilson's score interval (1927), which stays within 0 and 1
    and is right near both ends, where share +- 2 errors is not.

    >>> [round(end, 3) for end in wilson_interval(1.0, 10)]
    [0.722, 1.0]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, (middle - width) / (1 + z * z / n)), min(1.0, (middle + width) / (1 + z * z / n))
