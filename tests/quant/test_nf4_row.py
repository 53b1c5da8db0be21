"""The product of an NF4 weight with a single row of x in int8: whole sums that the plain loops have too, and every
fault planted in its loop is seen."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_sources import plant_all
from torch.utils import cpp_extension

from minillama.quant.nf4 import NF4_LEVELS

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = ("nf4_row.cpp", "nf4_int8.cpp", "nf4_absmax.cpp", "int8_tiles.cpp", "int8_rows.cpp", "vectors.cpp")
PIECE, STEP = 64, 112
FAULTS = [  # text that occurs once in nf4_row.cpp, with @what is right@ in it; what is wrong instead
    ("&rows.codes[@p * kNF4Piece + 32 * v@]", "p * kNF4Piece"),
    ("lane = @p % 2 * 8@;", "0"),
    ("32, line.codes[@v@] + 4 * lane", "0"),
    ("taken[0][lane] = @rows.offsets[p]@;", "0"),
    ("lane, 8, rows.scales[@p@]", "0"),
    ("_mm512_shuffle_f32x4(a, @b@, 0xEE)", "a"),
    ("_mm512_add_ps(four, @_mm512_permute_ps(four, 0x4E)@)", "four"),
    ("_mm512_add_ps(two, @_mm512_permute_ps(two, 0xB1)@)", "two"),
    ("w.codes + @32 * (r * w.pieces + p)@)", "32 * p"),
    ("_mm512_srli_epi16(bytes, @4@)", "0"),
    ("memcpy(&both, w.absmax + @r * w.pieces + p@,", "p"),
    ("_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(@taken@, low", "_mm512_setzero_si512()"),
    ("_mm512_cvtepi32_ps(dot), @scale@)", "x_scale"),
    ("scale), @x_scale@, sums[r])", "scale"),
    ("if (@p < w.pieces@) add_line", "false"),
    ("row_sums<kAtOnce>({w.codes + @r * row_bytes@,", "0"),
    ("row_sums<1>({w.codes + r * row_bytes, w.absmax + @r * w.pieces@,", "0"),
    ("nf4_absmax_of_rows(w, @first@, rows", "begin"),
    ("multiply({w.codes + @first * (w.columns / 2)@,", "begin * (w.columns / 2)"),
    ("x.lines.data(), rows, y + @first - begin@)", "0"),
]
DOORS = """
#include "nf4_row.h"
#include "vectors.h"
using namespace minillama;
extern "C" {
int choose(const char* name) { return choose_vectors(name); }
int vnni() { return vectors_have_vnni(); }
void product(const uint8_t* codes, const float* absmax, int64_t N, int64_t K, const float* x, int64_t begin, float* y) {
  kernels::NF4 w{};
  w.codes = codes;
  w.absmax = absmax;
  w.rows = N;
  w.columns = K;
  w.block_size = 64;
  NF4Int8Rows rows;
  nf4_int8_lay_out(x, 1, K, rows);
  nf4_int8_rows(w, rows, begin, N, y, N - begin);
}
}
int planted = 0;
"""
SHAPES = ((1, 64), (4, 128), (7, 192), (41, 640), (23, 1344))  # N, K


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """The loops as a library of their own, in which fault n is in force while `planted` is n."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    folder = shutil.copytree(CSRC, tmp_path_factory.mktemp("row") / "csrc") / "cpu"
    plant_all((number, folder / SOURCES[0], *fault) for number, fault in enumerate(FAULTS, 1))
    (folder / "doors.cpp").write_text(DOORS)
    (folder / "planted.h").write_text("extern int planted;\n")
    headers = [f"-I{path}" for path in cpp_extension.include_paths()]
    command = ["g++", *headers, "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-include", "planted.h", *SOURCES,
               "doors.cpp", "-o", "row.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(f"{folder}/row.so")


def check_whole_sums(library, kinds):
    """x is whole numbers times a power of two in each piece, of which the largest is 127 times it, and absmax are
    powers of two: all sums of levels, in 112ths, are whole multiples of 1/4 below 2^22, so exact, and are divided
    once."""
    generator = torch.Generator().manual_seed(0)
    for N, K in SHAPES:
        codes = torch.randint(256, (N, K // 2), generator=generator, dtype=torch.uint8)
        absmax = 2.0 ** torch.randint(-1, 2, (N, K // PIECE), generator=generator)
        x = torch.randint(-2, 3, (K,), generator=generator)
        x.view(-1, PIECE)[:, 5] = 127
        x = x * (2.0 ** torch.randint(-1, 2, (K // PIECE,), generator=generator)).repeat_interleave(PIECE)
        levels = torch.tensor([round(STEP * level) for level in NF4_LEVELS])[torch.stack([codes >> 4, codes & 15], -1)
                                                                             .view(N, K).long()]
        begin = N // 4
        wanted = ((levels * absmax.repeat_interleave(PIECE, 1)).double() @ x.double())[begin:].float() / STEP
        for kind in kinds:
            assert library.choose(kind.encode())
            y = np.zeros(N - begin, np.float32)
            library.product(*(ctypes.c_void_p(t.data_ptr()) for t in (codes, absmax)), ctypes.c_int64(N),
                            ctypes.c_int64(K), ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(begin),
                            ctypes.c_void_p(y.ctypes.data))
            assert (y == wanted.numpy()).all(), (kind, N, K)


def test_every_kind_of_loops_gives_the_same_whole_numbers(loops):
    ctypes.c_int.in_dll(loops, "planted").value = 0
    check_whole_sums(loops, [kind for kind in ("plain", "avx2", "avx512") if loops.choose(kind.encode())])


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{text} -> {wrong}" for text, wrong in FAULTS])
def test_every_fault_breaks_the_law(loops, number):
    if not (loops.choose(b"avx512") and loops.vnni()):
        pytest.skip("this CPU has no dot products of bytes (AVX512-VNNI): its products take another way")
    ctypes.c_int.in_dll(loops, "planted").value = number
    with pytest.raises(AssertionError):
        check_whole_sums(loops, ["avx512"])
