"""A model as the judge of two others: which answer to a question is better, and what such verdicts are worth.

A judge sees the two answers in an order, and many prefer the first, or the longer one, whatever they say (arXiv
2306.05685, section 3.3). So each pair is shown in both orders: an answer wins that is preferred in both; where the
order decides, it is a tie. How often it does is the position bias, which is reported and not hidden.
"""

import math
from statistics import NormalDist, fmean
from typing import NamedTuple

from minillama.evaluate.likelihood import encode_pair, log_likelihoods

PROMPT = ("Question: {question}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
          "Which answer is better, A or B? The better answer is")


class Verdict(NamedTuple):
    """Of one question: 1 ours is better, 0 theirs, 0.5 a tie; how often the answer shown first was preferred, of two;
    and by how many characters ours is longer."""

    score: float
    first_preferred: float
    longer_by: int


class Judgement(NamedTuple):
    """All verdicts in numbers. low, high: interval of the win rate. first_preferred: 0.5 without position bias.
    longer_preferred: of the decided pairs of unequal length, how often the longer one won; nan where there is none."""

    win_rate: float
    low: float
    high: float
    ties: float
    first_preferred: float
    longer_preferred: float


def preference_of(model, tokenizer):
    """f(question, first, second) > 0 where the model finds the letter A likelier than B: log p(" A") - log p(" B")."""
    def prefers(question, first, second):
        prompt = PROMPT.format(question=question, first=first, second=second)
        a, b = log_likelihoods(model, [encode_pair(tokenizer, prompt, f" {letter}") for letter in "AB"])
        return a - b

    return prefers


def judge_pair(prefers, question, ours, theirs):
    """The `Verdict` on two answers, shown in both orders."""
    shown = prefers(question, ours, theirs), prefers(question, theirs, ours)
    first = [(margin > 0) + 0.5 * (margin == 0) for margin in shown]
    ours_preferred = first[0], 1 - first[1]
    score = ours_preferred[0] if ours_preferred[0] == ours_preferred[1] else 0.5
    return Verdict(score, fmean(first), len(ours) - len(theirs))


def judge(prefers, questions, ours, theirs, level=0.95):
    """`Judgement` of ours against theirs, lists of answers to the same questions. A tie counts half for each."""
    verdicts = [judge_pair(prefers, *one) for one in zip(questions, ours, theirs, strict=True)]
    win_rate = fmean([verdict.score for verdict in verdicts])
    decided = [(verdict.score == 1) == (verdict.longer_by > 0) for verdict in verdicts
               if verdict.score != 0.5 and verdict.longer_by]
    return Judgement(win_rate, *wilson_interval(win_rate, len(verdicts), level),
                     fmean([verdict.score == 0.5 for verdict in verdicts]),
                     fmean([verdict.first_preferred for verdict in verdicts]), fmean(decided) if decided else math.nan)


def wilson_interval(share, n, level=0.95):
    """(low, high) around a share of n independent trials: Wilson's score interval (1927), which stays within 0 and 1
    and is right near both ends, where share +- 2 errors is not.

    >>> [round(end, 3) for end in wilson_interval(1.0, 10)]
    [0.722, 1.0]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, (middle - width) / (1 + z * z / n)), min(1.0, (middle + width) / (1 + z * z / n))
