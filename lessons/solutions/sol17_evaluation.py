"""Exercise 17, solved: say what a difference between two models is worth."""
import math


def mean_and_error(values):
    """(mean, its standard error)."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired_error(ours, theirs):
    """Standard error of the mean of ours - theirs, item by item."""
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    return mean_and_error(differences)[1]


def items_needed(accuracy, error):
    """The least number of items for that error."""
    return math.ceil(accuracy * (1 - accuracy) / error**2 - 1e-9)


def choice_per_character(sums, texts):
    """Number of the choice with the largest log-likelihood per character."""
    shares = [total / len(text) for total, text in zip(sums, texts, strict=True)]
    return shares.index(max(shares))
