"""The label ceiling without a ground truth: how often people who judged the same two answers agreed."""

import math
from collections import Counter

LEAST = 20  # comparisons of two labels, of which a share says something


def agreement(pairs):
    """(share of comparisons that agree, their number) over all labels of the same two answers to a prompt.

    pairs: `Pair`s, some of them given twice or more, in either order. k labels of which c say the one and k - c the
    other are k (k - 1) / 2 comparisons, of which c (c - 1) / 2 + (k - c) (k - c - 1) / 2 agree. (nan, 0): none.
    """
    labels = Counter(pairs)
    asked = {(prompt, *sorted(answers)) for prompt, *answers in labels}
    ways = [(labels[prompt, one, other], labels[prompt, other, one]) for prompt, one, other in asked]
    compared = sum(math.comb(a + b, 2) for a, b in ways)
    agreeing = sum(math.comb(a, 2) + math.comb(b, 2) for a, b in ways)
    return (agreeing / compared if compared else math.nan), compared


def ceiling_of(share):
    """The share of labels that a judge who knew the truth would agree with, p, from the share of comparisons that
    agree: two labels that are right with p each, by chances of their own, agree with p^2 + (1 - p)^2, so

        p = (1 + sqrt(2 share - 1)) / 2

    >>> ceiling_of(1.0), ceiling_of(0.68), ceiling_of(0.4)
    (1.0, 0.8, 0.5)
    """
    return 0.5 + 0.5 * math.sqrt(max(2 * share - 1, 0.0))


def diagnose_labels(pairs):
    """A sentence, or "", on labels that contradict one another where they were given twice."""
    share, compared = agreement(pairs)
    if compared < LEAST or ceiling_of(share) > 0.9:
        return ""
    return (f"of {compared} pairs of labels for the same two answers {share:.0%} agree: a judge who knew the truth "
            f"would agree with {ceiling_of(share):.0%} of the labels, and no reward model can be seen to do better")
