"""Exercise 13: nucleus sampling with exact ties, and drawing many pieces at once.

The solution is in lessons/solutions/.
"""


def top_p(probabilities, c):
    """Keep the fewest likeliest pieces whose probabilities together reach c, and make them sum to 1.

    probabilities: (V,), float32 or float64, sum 1, in no particular order. c: float, above 0 and at most 1.
    Of two equally likely pieces, the one with the lower id comes first, and each counts for itself: with
    [0.25, 0.25, 0.25, 0.25] and c = 0.5, pieces 0 and 1 stay.
    Returns (V,) in the same dtype, 0 for pieces that were dropped.
    """
    raise NotImplementedError("your code here")


def draw(probabilities, u):
    """For each u, the piece on which it falls when the probabilities are laid end to end from 0.

    probabilities: (V,). u: (N,), each at least 0 and below 1. Returns (N,) int64: the first piece at which the
    running sum is greater than u. A piece of probability 0 is never drawn, not even where rounding leaves the sum
    of all a little below 1 and u lies above it: then the last piece that has a chance is drawn.
    """
    raise NotImplementedError("your code here")
