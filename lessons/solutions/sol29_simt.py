"""The solution of lessons/exercises/ex29_simt.py: a sum by a block of threads."""


def block_sum(i, n, shared, x, out):
    """Thread i of n (a power of two) helps to leave the sum of x in out[0]."""
    shared[i] = x[i]
    yield  # all elements are there
    half = n // 2
    while half:
        if i < half:
            shared[i] = shared[i] + shared[i + half]
        yield  # outside the branch: the others wait too
        half //= 2
    if i == 0:
        out[0] = shared[0]
