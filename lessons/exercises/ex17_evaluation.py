"""Exercise 17: say what a difference between two models is worth (lesson 17)."""


def mean_and_error(values):
    """(mean, its standard error s / sqrt(n)) of a list of two or more numbers; s has n - 1 below the root."""
    raise NotImplementedError("your code here")


def paired_error(ours, theirs):
    """Standard error of the mean of ours - theirs: two lists, the results of two models on the same items."""
    raise NotImplementedError("your code here")


def items_needed(accuracy, error):
    """The least number of items for which sqrt(accuracy (1 - accuracy) / n) is at most `error`: an int."""
    raise NotImplementedError("your code here")


def choice_per_character(sums, texts):
    """Number of the choice with the largest log-likelihood per character; of equal ones the first.

    sums: the choices' log-likelihoods (below 0); texts: the choices.
    """
    raise NotImplementedError("your code here")
