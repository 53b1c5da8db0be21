"""Exercise 20, solved: an adapter beside its weight, merged into it, and taken out again."""


def forward(x, W0, A, B, alpha):
    """h = W0 x + (alpha / R) B A x for a batch: x (..., in) -> (..., out)."""
    return x @ W0.T + (alpha / len(A)) * ((x @ A.T) @ B.T)


def merge(W0, A, B, alpha):
    """The one weight that does the same, in the dtype of W0."""
    change = (alpha / len(A)) * (B @ A)
    return (W0.to(change.dtype) + change).to(W0.dtype)


def unmerge(W, A, B, alpha):
    """The base weight again, from a merged W."""
    return merge(W, A, -B, alpha)


def trained_numbers(n_out, n_in, rank):
    """How many numbers an adapter of this rank trains for one (n_out, n_in) matrix."""
    return rank * (n_out + n_in)
