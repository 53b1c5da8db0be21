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


def ratio_and_error(parts, wholes):
    """(sum of the parts / sum of the wholes, its standard error) over items, such as nats and bytes of documents.

    To first order the ratio R is off by the mean of part - R x whole, divided by the mean whole: the error is that
    mean's. nan for a single item.

    >>> ratio_and_error([1.0, 3.0], [2.0, 2.0])
    (1.0, 0.5)
    """
    ratio = sum(parts) / sum(wholes)
    off = [part - ratio * whole for part, whole in zip(parts, wholes, strict=True)]
    return ratio, mean_and_error(off)[1] / fmean(wholes)
