"""Checks of exercise 23: the table against the library's, packing against its files' order."""
import torch

from minillama.course.exercise import Wrong, close
from minillama.quant.nf4 import NF4_LEVELS, quantize_nf4

HINTS = {
    "levels": ("There are 16: seven below zero, zero itself, eight above, in ascending order, from -1 to 1.",
               "The probabilities run in equal steps from 0.5, which is left out, to p_max, which is included.",
               "Above zero the step is (p_max - 0.5) / 8, below zero (p_max - 0.5) / 7; divide all by Q(p_max)."),
    "pack": ("Shift the even elements up by four bits and put the odd ones below them.",
             "An odd count needs one more code at the end: 7, the place of 0.0 in the table.",
             "byte_j = 16 * code_(2j) + code_(2j + 1), still uint8"),
    "unpack": ("High half first, low half second; with an odd n one half too many comes out: cut it off.",
               "high = byte / 16 rounded down, low = byte mod 16; interleave the two."),
}


def check_levels(learner):
    got = learner.normal_float_levels()
    if len(got) != 16:
        raise Wrong(f"levels: expected 16, got {len(got)}", 0)
    if list(got) != sorted(got) or got[7] != 0.0 or abs(got[0] + 1) > 1e-6 or abs(got[15] - 1) > 1e-6:
        raise Wrong(f"levels: they must ascend from -1 to 1 with 0.0 at index 7, got {got}", 0)
    close("levels 8 to 15", torch.tensor(got[8:]), torch.tensor(NF4_LEVELS[8:]), 1e-6, hint=1)
    close("levels 0 to 6", torch.tensor(got[:7]), torch.tensor(NF4_LEVELS[:7]), 1e-6, hint=2)
    small = learner.normal_float_levels(above=1, below=1)
    close("levels with one on each side", torch.tensor(small), torch.tensor([-1.0, 0.0, 1.0]), 1e-6, hint=2)


def check_pack(learner):
    codes = torch.tensor([1, 2, 15, 0], dtype=torch.uint8)
    close("pack [1, 2, 15, 0]", learner.pack(codes), torch.tensor([0x12, 0xF0], dtype=torch.uint8), 0, hint=0)
    one = learner.pack(torch.tensor([9], dtype=torch.uint8))
    close("pack [9]", one, torch.tensor([0x97], dtype=torch.uint8), 0, hint=1)
    generator = torch.Generator().manual_seed(0)
    for n in (2, 63, 64, 65, 101):  # a library's file, made from weights that are levels
        codes = torch.randint(0, 16, (n,), generator=generator, dtype=torch.uint8)
        codes[0::64] = 15  # absmax 1 in every block, so that the codes come back
        stored = quantize_nf4(torch.tensor(NF4_LEVELS)[codes.long()], 64, False)
        close(f"pack {n} codes", learner.pack(codes), stored.codes, 0, hint=2 if n % 2 == 0 else 1)


def check_unpack(learner):
    generator = torch.Generator().manual_seed(1)
    for n in (1, 2, 7, 64, 101):
        codes = torch.randint(0, 16, (n,), generator=generator, dtype=torch.uint8)
        padded = torch.cat([codes, torch.full((n % 2,), 7, dtype=torch.uint8)])
        packed = padded[0::2] * 16 + padded[1::2]
        close(f"unpack {n} codes", learner.unpack(packed, n), codes, 0, hint=1 if n > 1 else 0)


WRONG = [
    ("range(1, count + 1)", "range(count)", "levels", 0),
    ("(P_MAX - 0.5) / count", "(P_MAX - 0.5) / 8", "levels", 0),
    ("0.5 + step * i", "1 - 0.5 * (1 - (P_MAX - 0.5) / 0.5) ** (i / count)", "levels", 1),
    ("codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]", "pack", 0),
    ("torch.tensor([7]", "torch.tensor([0]", "pack", 1),
    ("[packed >> 4, packed & 15], dim=1", "[packed >> 4, packed & 15], dim=0", "unpack", 1),
    (".flatten()[:n]", ".flatten()", "unpack", 0),
    ("0.5 + step * i", "0.5 + step * (i - 0.5)", "levels", 0),
    ("[level / largest for level in levels]", "levels", "levels", 0),
    ("(-q for q in quantiles(below))", "(-q for q in quantiles(above))", "levels", 0),
    ("sorted([*quantiles(above), 0.0, *(-q for q in quantiles(below))])",
     "[*quantiles(above), 0.0, *(-q for q in quantiles(below))]", "levels", 0),
    ("<< 4 |", "<< 3 |", "pack", 0),
    ("codes[0::2] << 4 | codes[1::2]", "codes[:len(codes) // 2] << 4 | codes[len(codes) // 2:]", "pack", 0),
    ("codes[0::2] << 4 | codes[1::2]", "(codes[0::2] << 4 | codes[1::2]).int()", "pack", 0),
    ("packed & 15", "packed & 7", "unpack", 1),
    ("packed >> 4,", "packed >> 3,", "unpack", 0),
]
