"""Exercise 14: pack documents without a look across their borders (lesson 14)."""


def jaccard(a, b, n):
    """Share of common word n-grams: |A and B| / |A or B| over the sets of runs of n words, a float.

    a, b: str, split at white space. Two texts without any run of n words have 1.0 if they have the same words, else
    0.0.
    """
    raise NotImplementedError("your code here")


def pack(documents, length, eos_id):
    """Documents (lists of ids) joined end to end, eos_id behind each, cut every `length` tokens.

    Returns [(tokens, numbers), ...]: two int64 tensors (T,) for each row, T = length but for the last; numbers tells
    for each token the document it comes from, counted from 0 (the eos belongs to the document before it).
    """
    raise NotImplementedError("your code here")


def may_see(numbers):
    """Which token may look at which: bool (T, T), [i, j] True where j <= i and both are of the same document.

    numbers: int64 (T,), as `pack` gives it.
    """
    raise NotImplementedError("your code here")


def positions(numbers):
    """Place of each token in its own document, counted from 0 where the document begins in this row: int64 (T,)."""
    raise NotImplementedError("your code here")
