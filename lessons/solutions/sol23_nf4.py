"""Exercise 23, solved: the levels of NF4, and two codes in a byte."""
from statistics import NormalDist

import torch

P_MAX = 0.9677083


def normal_float_levels(above=8, below=7):
    """The levels of NF4, ascending: `below` negative ones, an exact 0.0, `above` positive ones."""
    def quantiles(count):
        step = (P_MAX - 0.5) / count
        return [NormalDist().inv_cdf(0.5 + step * i) for i in range(1, count + 1)]

    largest = NormalDist().inv_cdf(P_MAX)
    levels = sorted([*quantiles(above), 0.0, *(-q for q in quantiles(below))])
    return [level / largest for level in levels]


def pack(codes):
    """Two codes in each byte: element 2j in the high four bits, 2j + 1 in the low."""
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    return codes[0::2] << 4 | codes[1::2]


def unpack(packed, n):
    """The n codes that `pack` stored."""
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n]
