"""Each operation on 16-bit floats is one rounding of the exact result: equal to a table made with exact rationals.

10,000 triples of each type, edges first: zeros of both signs, the ends of the subnormal and the normal numbers, ties,
and triples for which a fused operation by way of float is rounded twice.
"""

import itertools
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from minillama import kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                reason="kernels are compiled on the spot by g++, on Linux")
COUNT = 10_000
FORMATS = {"halves": (torch.float16, 10, -14), "brains": (torch.bfloat16, 7, -126)}  # bits of mantissa, least exponent


@pytest.fixture(scope="module")
def lab():
    return kernels.CudaSource(Path(__file__).resolve().parent / "kernels" / "halves.cu")


def nearest(exact, mantissa, least):
    """The bits of the number next to a positive rational, ties to even (IEEE 754-2019, 4.3.1); or infinity."""
    top, bottom = exact.numerator, exact.denominator
    exponent = top.bit_length() - bottom.bit_length()
    exponent -= (top << max(0, -exponent)) < (bottom << max(0, exponent))
    exponent = max(exponent, least)
    shift = exponent - mantissa
    steps, rest = divmod(top << max(0, -shift), bottom << max(0, shift))
    half = 2 * rest - (bottom << max(0, shift))
    steps += half > 0 or (half == 0 and steps & 1)
    return min(((exponent - least) << mantissa) + steps, 0x7FFF >> mantissa << mantissa)


def rounded(exact, negative_zero, kind):
    _, mantissa, least = FORMATS[kind]
    if exact == 0:
        return 0x8000 * negative_zero
    return 0x8000 * (exact < 0) | nearest(abs(exact), mantissa, least)


def tensor_of(bits, kind):
    return torch.from_numpy(np.array(bits, np.uint16).view(np.int16)).view(FORMATS[kind][0])


def bits_of(tensor):
    return tensor.view(torch.int16).numpy().view(np.uint16)


def twice_rounded():
    """Triples (a, b, c) of halves whose a b + c is one half by way of float and another at once."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 0x7800, (3, 500_000), dtype=np.uint16)
    a, b, c = bits.view(np.float16).astype(np.float64)
    exact = a * b + c
    with np.errstate(over="ignore"):
        found = exact.astype(np.float16) != exact.astype(np.float32).astype(np.float16)
    return bits[:, found].T.tolist()


def triples(kind):
    """(a, b, c) as bits: each edge with each, then hard ones, then any finite numbers."""
    _, mantissa, least = FORMATS[kind]
    one, largest = (1 - least) << mantissa, (0x7FFF >> mantissa << mantissa) - 1
    edges = [0, 1, 2, (1 << mantissa) - 1, 1 << mantissa, one - 1, one, one + 1, one + (1 << mantissa), largest - 1,
             largest]
    signed = edges + [0x8000 | edge for edge in edges]
    hard = [(a, b, c) for (a, b), c in zip(itertools.product(signed, signed), itertools.cycle(signed),
                                                   strict=False)]
    if kind == "halves":
        hard += twice_rounded()
    else:  # a b lies half way between two neighbours, and c, far below a float's last bit, decides
        tiny = (1, 3000, 0x8001, 0x8000 | 3000)
        hard += [(one + a, one + 64, c) for a in range(1, 128, 2) for c in tiny]
        hard += [(one - (67 << 7) + a, (67 << 7) + 128 + b, 0) for a in range(1, 128, 7) for b in range(128)]
    rng = np.random.default_rng(2)
    rest = rng.integers(0, 1 << 16, (3 * COUNT, 3))
    rest = rest[(rest & 0x7FFF).max(1) <= largest]
    return (hard + rest.tolist())[:COUNT]


def table(rows, kind):
    """{operation: bits of each right result}, None where it is no number."""
    bits = sorted({one for row in rows for one in row})
    known = dict(zip(bits, map(Fraction, tensor_of(bits, kind).double().tolist()), strict=True))
    right = {name: [] for name in ("add", "sub", "mul", "div", "fma")}
    for a, b, c in rows:
        x, y, z = known[a], known[b], known[c]
        sign_a, sign_b, sign_c = a >> 15, b >> 15, c >> 15
        right["add"].append(rounded(x + y, sign_a & sign_b, kind))
        right["sub"].append(rounded(x - y, sign_a & (1 - sign_b), kind))
        right["mul"].append(rounded(x * y, sign_a ^ sign_b, kind))
        right["div"].append(rounded(x / y, sign_a ^ sign_b, kind) if y else None)
        right["fma"].append(rounded(x * y + z, (sign_a ^ sign_b) & sign_c, kind))
    return right


ROWS = "add sub mul div fma add sub mul add sub mul div add mul fma sub".split()  # of `out` in halves.cu


@pytest.mark.parametrize("kind", FORMATS)
def test_each_operation_is_one_rounding_of_the_exact_result(lab, kind):
    rows = triples(kind)
    assert len(rows) == COUNT
    right = table(rows, kind)
    a, b, c = (tensor_of([row[i] for row in rows], kind) for i in range(3))
    out = torch.zeros(17, COUNT, dtype=FORMATS[kind][0])
    getattr(lab, kind)(a, b, c, out, COUNT)
    for number, name in enumerate(ROWS):
        wrong = [(rows[i], int(got), want) for i, (got, want) in enumerate(zip(bits_of(out[number]), right[name],
                                                                                        strict=True))
                 if want is not None and got != want]
        assert not wrong, (number, name, len(wrong), wrong[:3])
    twice = sum(int(got) != want for got, want in zip(bits_of(out[16]), right["fma"], strict=True))
    assert twice > 9, "the table would not tell one rounding from two"


@pytest.mark.parametrize("kind", FORMATS)
def test_doubles_and_integers_become_16_bits_by_one_rounding(lab, kind):
    _, mantissa, least = FORMATS[kind]
    one = tensor_of(np.arange(1 << mantissa) + ((1 - least) << mantissa), kind).double().numpy()
    ties = one + 2.0 ** (-mantissa - 1)  # and next to them, closer than a float can say
    doubles = np.concatenate([[0, -0.0, 2.0 ** least, 2.0 ** (least - mantissa - 1), 65519.999999, 65520.0], ties,
                              ties * (1 + 2.0 ** -40), ties * (1 - 2.0 ** -40), ties * 2.0 ** (least - 3)])
    rng = np.random.default_rng(3)
    rest = rng.standard_normal(COUNT - len(doubles)) * 2.0 ** rng.integers(least - 9, 20, COUNT - len(doubles))
    doubles = np.concatenate([doubles, rest])
    top = (129 + 2 * np.arange(60, dtype=np.int64)) << 54  # ties of 8 bits, with one bit far below
    integers = np.concatenate([top + 1, top - 1, -top - 1, rng.integers(-70_000, 70_000, COUNT - 180)])
    out = torch.zeros(3, COUNT, dtype=FORMATS[kind][0])
    getattr(lab, f"to_{kind}")(torch.from_numpy(doubles), torch.from_numpy(integers), out, COUNT)
    for got, values in ((out[0], doubles.tolist()), (out[1], integers.tolist())):
        want = [rounded(Fraction(value), str(value) == "-0.0", kind) for value in values]
        wrong = [(v, int(g), w) for v, g, w in zip(values, bits_of(got), want, strict=True) if g != w]
        assert not wrong, wrong[:3]
    by_float = [rounded(Fraction(value), str(value) == "-0.0", kind) for value in doubles.tolist()]
    assert (bits_of(out[2]) != np.array(by_float)).sum() > 20, "the table would not tell one rounding from two"
