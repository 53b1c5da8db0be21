"""Exercise 20: an adapter beside its weight, merged into it, and taken out again (lesson 20).

W0: (out, in), the frozen weight; A: (R, in); B: (out, R); alpha: a number. R is read off A.
"""


def forward(x, W0, A, B, alpha):
    """h = W0 x + (alpha / R) B A x for a batch: x (..., in) -> (..., out).

    Do not build B A: for thin matrices two small products are far cheaper.
    """
    raise NotImplementedError("your code here")


def merge(W0, A, B, alpha):
    """The one weight that does the same: a new tensor of the shape and dtype of W0, which stays as it was.

    W0 may be fp16 while A and B are fp32: add in the dtype of A and B and round once, at the end.
    """
    raise NotImplementedError("your code here")


def unmerge(W, A, B, alpha):
    """The base weight again, from a merged W: a new tensor of its shape and dtype.

    Computed in the dtype of A and B and rounded once, as in merge.
    """
    raise NotImplementedError("your code here")


def trained_numbers(n_out, n_in, rank):
    """How many numbers an adapter of this rank trains for one (n_out, n_in) matrix."""
    raise NotImplementedError("your code here")
