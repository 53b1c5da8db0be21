"""Special functions stay within the errors that the CUDA C++ programming guide gives (its appendix on mathematical
functions), in units in the last place of the exact result, which mpmath gives with 60 digits.
"""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from test_cuda_program import FOLDER, compiles

from minillama.simt.cuda_program import build, run

mpmath = pytest.importorskip("mpmath")
mpf = mpmath.mpf


FUNCTIONS = {  # name: (exact, errors allowed as double and as float, from, to)
    "sinpi": (mpmath.sinpi, 2, 1, -4, 4), "cospi": (mpmath.cospi, 2, 1, -4, 4),
    "normcdf": (lambda x: mpmath.erfc(-x / mpmath.sqrt(2)) / 2, 5, 5, -37, 8),
    "erfcx": (lambda x: mpmath.exp(x * x) * mpmath.erfc(x), 4, 4, -9, 40),
    "erfinv": (mpmath.erfinv, 5, 2, -1, 1), "erfcinv": (lambda y: mpmath.erfinv(1 - y), 6, 4, 0, 2),
    "normcdfinv": (lambda p: mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1), 8, 5, 0, 1),
    "rcbrt": (lambda x: mpmath.sign(x) / mpmath.cbrt(abs(x)), 2, 2, -1e6, 1e6),
    "rhypot": (lambda x: 1 / mpmath.sqrt(x * x + 9), 2, 2, -1e3, 1e3),
    "norm3d": (lambda x: mpmath.sqrt(x * x + 13), None, 3, -100, 100),
    "rnorm3d": (lambda x: 1 / mpmath.sqrt(x * x + 13), None, 2, -100, 100),
    "norm4d": (lambda x: mpmath.sqrt(x * x + 14), None, 3, -100, 100)}
EACH = 60


def values_of(name):
    """Edges first: small numbers, and those next to where the function is 0 or has its poles."""
    _, _, _, low, high = FUNCTIONS[name]
    steps = [(high - low) * 2.0 ** -k for k in (1, 3, 9, 20)]
    edges = [high - step for step in steps] + [low + step for step in steps[1:]]
    edges += [x for x in (1e-7, -1e-7, 1.0, -1.0, 0.5, 0.99999, 1e-12, 1.5 + 1e-9, 26.0, 3.0000001) if low < x < high]
    edges = [x for x in edges if x]
    return np.float32(edges + np.random.default_rng(5).uniform(low, high, EACH - len(edges)).tolist()).astype(float)


def ulp(exact, kind):
    bits, least = (52, -1022) if kind == "double" else (23, -126)
    exponent = int(mpmath.floor(mpmath.log(abs(exact), 2))) if exact else least
    return mpf(2) ** (max(exponent, least) - bits)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{(kind, name): results}, of one run of the program."""
    folder = tmp_path_factory.mktemp("functions")
    numbers = np.concatenate([values_of(name) for name in FUNCTIONS])
    (folder / "in").write_bytes(numbers.tobytes())
    assert run(build(Path(FOLDER) / "functions.cu"), [str(folder / "in"), str(folder / "out")]).code == 0
    rows = np.array(struct.unpack(f"{21 * len(numbers)}d", (folder / "out").read_bytes())).reshape(21, -1)
    names = list(FUNCTIONS)
    of = {("double", name): rows[i] for i, name in enumerate(names[:9])}
    of |= {("float", name): rows[9 + i] for i, name in enumerate(names)}
    return {(kind, name): row[EACH * names.index(name):][:EACH] for (kind, name), row in of.items()}


@compiles
@pytest.mark.parametrize("kind", ["double", "float"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_stays_within_the_error_that_cuda_documents(results, name, kind):
    exact, double_error, float_error, *_ = FUNCTIONS[name]
    allowed = double_error if kind == "double" else float_error
    if allowed is None:
        pytest.skip("declared for float alone")
    with mpmath.workdps(60):
        for x, got in zip(values_of(name), results[kind, name], strict=True):
            right = exact(mpf(float(x)))
            error = abs(mpf(float(got)) - right) / ulp(right, kind)
            assert error <= allowed, (name, float(x), float(got), float(right))


def test_the_plain_formulas_lie_outside_these_errors():
    """What each was before: the error allowed tells it from one that keeps its digits."""
    plain = [("sinpi", math.sin(math.pi * math.fmod(3.0000001, 2)), 3.0000001),
             ("normcdf", 0.5 * math.erfc(30.3 * math.sqrt(0.5)), -30.3),
             ("erfcx", 1 / (25.5 * math.sqrt(math.pi)) * (1 - 1 / (2 * 25.5 ** 2)), 25.5)]
    with mpmath.workdps(60):
        for name, got, x in plain:
            exact, allowed, *_ = FUNCTIONS[name]
            assert abs(mpf(got) - exact(mpf(x))) > allowed * ulp(exact(mpf(x)), "double"), name
