"""The solution of lessons/exercises/ex31_reduction.py: the online maximum and sum of softmax."""

import math


def combine(a, b):
    """(m, l) of two parts together."""
    m = max(a[0], b[0])
    if m == -math.inf:
        return m, 0.0
    return m, a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)
