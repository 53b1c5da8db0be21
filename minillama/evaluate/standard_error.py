"""What an average over a benchmark's items is worth: the standard error of a mean, and of a difference of two.

The items are taken for a sample of all questions that might have been asked. Two models are asked the same ones, so
their difference is judged item by item: what is hard for both does not count as noise.
"""

import math
from statistics import fmean, stdev


def mean_and_error(values):
    """(mean, standard error s / sqrt(n)), s with n - 1 below the root; the error of a single value is nan.

    >>> mean_and_error([1, 0, 0, 1])
    (0.5, 0.28867513459481287)
    """
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def paired_difference(ours, theirs):
    """(mean, standard error) of ours - theirs, which answered the same items in the same order."""
    return mean_and_error([our - their for our, their in zip(ours, theirs, strict=True)])
