"""The laws of the kernels of a training step see every planted fault of their loops in C++.

The source is compiled once more, each marked expression as `planted == n ? wrong : right`, with plain functions around.
"""

import ctypes
import shutil
import subprocess

import pytest
import torch
from planted_sources import plant_all

from minillama import kernels

pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed here")]

FAULTS = [  # text that occurs once in row_loops.cpp, with @what is right@ in it; what is wrong instead
    "part += term == Term::square ? @of_x * of_x@ :| of_x",
    "of_x * load<lanes>(y + i) * @load<lanes>(z + i)@;|load<lanes>(y + i)",
    "return sum_terms<lanes, Term::square>(x, nullptr, nullptr, n) +\n         @sum_terms<1, Term::square>(x + whole, "
    "nullptr, nullptr, n - whole)@;|0",
    "load<lanes>(x + i) * scale * @load<lanes>(gain + i)@);|load<lanes>(gain)",
    "store<lanes>(d_gain + i, @load<lanes>(d_gain + i)@ +|Floats<lanes>{}",
    "load<lanes>(d_gain + i) + @of_dy * (of_x * scale)@);|of_dy * of_x",
    "(of_dy * load<lanes>(gain + i) - @of_x * along@) * scale|Floats<lanes>{}",
    "(of_dy * @load<lanes>(gain + i)@ - of_x|Floats<lanes>{} + 1.0f",
    "float(double(scale) * @scale@ * product|1",
    "product / @double(n)@);|double(n + 1)",
    "+\n                         @sum_terms<1, Term::product_of_three>(dy + whole, gain + whole, x + whole, left)@;|0",
    "size = a < 0.0f ? @-a@ : a|0.5f * a",
    "return (a < 0.0f ? @power@ : one)|one",
    "(power + @1.0f@);|1.001f",
    "of_a * @sigmoid<lanes>(of_a)@ * load<lanes>(b + i)|sigmoid<lanes>(load<lanes>(b + i))",
    "load<lanes>(b + i) * (s + @silu * (1.0f - s)@)|silu",
    "of_dy * @load<lanes>(b + i)@ * (s|of_a",
    "store<lanes>(db + i, of_dy * @silu@);|s",
    "for (int lane = 0; lane < lanes; ++lane) most = std::max(most, numbers[@lane@]);|0",
    "power_of_2<lanes>((load<lanes>(x + i) - @most@) * (scale|0.0f",
    "- most) * (@scale@ * kLog2E)|1.0f",
    "sum += @sum_of<lanes>(part)@;\n  }\n  return sum;\n}\n\ntemplate <int lanes>\nstatic INLINE void multiply|"
    "sum_of<lanes>(part) * 1.0001",
    "exponentials<lanes>(x, n, most) + @exponentials<1>(x + whole, left, most)@;|0",
    "exponentials<lanes>(x, n, most, scale) + @exponentials<1>(x + whole, left, most, scale)@;|0",
    "multiply<lanes>(x, n, @float(1 / sum)@);|1.0f",
    "multiply<1>(x + whole, left, @float(1 / sum)@);|1.0f",
    "multiply<lanes>(x, n, @float(factor / sum)@);|float(1 / sum)",
    "multiply<1>(x + whole, left, @float(factor / sum)@);|float(factor)",
    "x[target] -= @factor@;|1",
    "float(std::log(sum) + @(double(most) - at_target)@)|double(most)",
]
PLAIN = """
extern "C" { int planted; }
#include "%s/row_loops.cpp"
using minillama::row_loops;
extern "C" double sum_of_squares(const float* x, int64_t n) { return row_loops().sum_of_squares(x, n); }
extern "C" void normalize(const float* x, float scale, const float* gain, float* y, int64_t n) {
  row_loops().normalize(x, scale, gain, y, n);
}
extern "C" void normalize_backward(const float* dy, const float* x, const float* gain, float scale, float* dx,
                                   float* d_gain, int64_t n) {
  row_loops().normalize_backward(dy, x, gain, scale, dx, d_gain, n);
}
extern "C" void gate(const float* a, const float* b, float* y, int64_t n) { row_loops().gate(a, b, y, n); }
extern "C" void gate_backward(const float* dy, const float* a, const float* b, float* da, float* db, int64_t n) {
  row_loops().gate_backward(dy, a, b, da, db, n);
}
extern "C" void softmax(float* x, int64_t n, float scale) { row_loops().softmax(x, n, scale); }
extern "C" float cross_entropy(float* x, int64_t n, int64_t target, float factor) {
  return row_loops().cross_entropy(x, n, target, factor);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(kernels.source_folder(), folder, dirs_exist_ok=True)
    path = folder / "cpu" / "row_loops.cpp"
    plant_all((number, path, *fault.rsplit("|", 1)) for number, fault in enumerate(FAULTS, 1))
    command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-I", f"{torch.__path__[0]}/include", "-x", "c++",
               "-", str(folder / "cpu" / "vectors.cpp"), "-o", str(folder / "planted.so")]
    done = subprocess.run(command, input=PLAIN % (folder / "cpu"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return ctypes.CDLL(str(folder / "planted.so"))


def call(function, *arguments):
    """The C function on tensors of fp32 and numbers: float for a float, int64 for an int."""
    return function(*(ctypes.c_void_p(x.data_ptr()) if torch.is_tensor(x) else
                      ctypes.c_float(x) if isinstance(x, float) else ctypes.c_int64(x) for x in arguments))


def errors(library, n):
    """How far each loop is off the formula in float64, for rows of n numbers, relative to the largest number."""
    torch.manual_seed(n)
    x, y, gain = 4 * torch.randn(n), torch.randn(n), torch.randn(n)
    wide, dy, wide_gain = x.double(), y.double(), gain.double()
    library.sum_of_squares.restype, library.cross_entropy.restype = ctypes.c_double, ctypes.c_float
    normed, dx, d_gain, target = torch.empty(n), torch.empty(n), torch.ones(n), n // 2
    pairs = [(torch.tensor(call(library.sum_of_squares, x, n)), wide.pow(2).sum())]
    scale = 0.25
    call(library.normalize, x, scale, gain, normed, n)
    call(library.normalize_backward, y, x, gain, scale, dx, d_gain, n)
    g = dy * wide_gain
    pairs += [(normed, wide * scale * wide_gain), (d_gain, 1 + dy * wide * scale),
              (dx, scale * (g - wide * scale**2 * (g * wide).mean()))]
    gated, da, db = (torch.empty(n) for _ in range(3))
    call(library.gate, x, gain, gated, n)
    call(library.gate_backward, y, x, gain, da, db, n)
    s = wide.sigmoid()
    pairs += [(gated, wide * s * wide_gain), (da, g * (s + wide * s * (1 - s))), (db, dy * wide * s)]
    row = 30 * x
    loss = call(library.cross_entropy, row, n, target, 0.75)
    share = (30 * x).double().softmax(-1)
    far = 0.75 * (share - (torch.arange(n) == target).double())
    pairs += [(row, far), (torch.tensor(loss), -(30 * x).double().log_softmax(-1)[target])]
    row = x.clone()
    call(library.cross_entropy, row, n, target, 0.75)
    pairs += [(row, 0.75 * (wide.softmax(-1) - (torch.arange(n) == target).double()))]
    row = x.clone()
    call(library.softmax, row, n, 0.375)
    pairs += [(row, (0.375 * wide).softmax(-1))]
    return [float(((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)).nan_to_num(1e9)) for a, b in pairs]


def laws_hold(library):
    return all(max(errors(library, n)) < 2e-6 for n in (3, 16, 45, 100))


def test_the_laws_hold_without_a_fault(library):
    assert laws_hold(library)


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=lambda n: FAULTS[n - 1].split("@")[1][:40])
def test_every_planted_fault_breaks_a_law(library, number):
    planted = ctypes.c_int.in_dll(library, "planted")
    planted.value = number
    try:
        assert not laws_hold(library), FAULTS[number - 1]
    finally:
        planted.value = 0
