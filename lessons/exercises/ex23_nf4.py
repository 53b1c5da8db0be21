"""Exercise 23: the levels of NF4, and two codes in a byte (lesson 23)."""


def normal_float_levels(above=8, below=7):
    """The levels of NF4, ascending: `below` negative ones, an exact 0.0, `above` positive ones. A list of floats.

    Quantiles of N(0, 1) (`statistics.NormalDist().inv_cdf`) at probabilities spaced evenly between 0.5 (left out: it
    is the zero) and p_max = 0.9677083 (included), separately above and below zero, all divided by the quantile of
    p_max. So the first level is -1.0 and the last 1.0, for any counts.
    """
    raise NotImplementedError("your code here")


def pack(codes):
    """Two codes in each byte: element 2j in the high four bits, 2j + 1 in the low.

    codes: uint8 (n,), values 0 ... 15. Returns uint8 (ceil(n / 2),). Where n is odd, the last low half is 7, the code
    of 0.0.
    """
    raise NotImplementedError("your code here")


def unpack(packed, n):
    """The n codes that `pack` stored: uint8 (ceil(n / 2),) -> uint8 (n,)."""
    raise NotImplementedError("your code here")
