"""Exercise 25: pairs from votes, and a preference loss that is finite everywhere (lesson 25)."""


def pairs(scores, most):
    """All (better, worse) index pairs of one question's answers whose scores differ, at most `most` of them.

    scores: list of int. Returns a list of (i, j) with scores[i] > scores[j]. Order: those with the largest difference
    first; of equal differences the pair with the smaller i first, then the smaller j. Ties make no pair.
    """
    raise NotImplementedError("your code here")


def preference_loss(chosen, rejected, margin=None):
    """Mean of -log sigmoid(chosen - rejected - margin), a scalar tensor; margin None is 0.

    chosen, rejected: float (B,), margin: float (B,) or None. Finite for any finite difference, where
    log(sigmoid(x)) as it stands is log(0) for x = -200.
    """
    raise NotImplementedError("your code here")


def accuracy(chosen, rejected):
    """Share of pairs in which the chosen text scores higher, a tie counting one half: a Python float."""
    raise NotImplementedError("your code here")
