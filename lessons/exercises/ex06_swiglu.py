"""Exercise 06: how wide LLaMA's feed-forward layer is, and the slope of its bend.

The solution is in lessons/solutions/.
"""


def hidden_width(dim, multiple_of=256, multiplier=None):
    """The feed-forward width F, a whole number, in Meta's four steps.

    1. Start from 4 dim.  2. Take two thirds of it, cut down to a whole number.
    3. If a multiplier (float) is given: multiply by it, and cut down to a whole number again.
    4. Round up to the next multiple of multiple_of; what is a multiple already stays.
    """
    raise NotImplementedError("your code here")


def silu_slope(a):
    """The derivative of SiLU(a) = a * sigmoid(a), place by place.

    a: tensor of any shape, float32 or float64. Returns the same shape and dtype; finite for a = -1000 and 1000 too.
    """
    raise NotImplementedError("your code here")
