"""Exercise 31: the online maximum and sum of softmax, for a tree.

A part of a row is summed up by two numbers: m, the largest of its x, and l, the sum of exp(x - m) over it.
The solution is in lessons/solutions/.
"""


def combine(a, b):
    """(m, l) of two parts together, from a = (m, l) of the one and b = (m, l) of the other.

    All are Python floats; returns a tuple of two. An empty part is (-inf, 0.0), and it changes nothing; two empty parts
    give an empty part. No exponential may be taken of a positive number: it would overflow.
    """
    raise NotImplementedError("your code here")
