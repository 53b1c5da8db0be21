"""The tiles of int8 products by themselves: where interleaving puts each byte, and sums that are exact; and that these
laws see every fault planted in them."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from planted_sources import plant_all
from torch.utils import cpp_extension

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FAULTS = [  # text that occurs once in int8_tiles.cpp, with @what is right@ in it; what is wrong instead
    ("r + j, @rows - 1@) * row_bytes", "rows"),
    ("row_bytes + @4 * i@;", "i"),
    ("std::min<int64_t>(16, @fours - i@)", "16"),
    ("out + (i + j) * @kTileRows@ + r, block[j]", "16"),
    ("_mm512_set1_epi32(@16 - size@)", "16 + size"),
    ("_mm512_add_epi32(lane, @size_of_block@)", "_mm512_setzero_si512()"),
    ("upper, lane, _mm512_set1_epi32(@16@)", "0"),
    ("_mm512_set1_epi8(@15@)", "7"),
    ("_mm512_srli_epi16(bytes, @4@)", "3"),
    ("out + @eight@ + j, _mm512_shuffle", "0"),
    ("codes += @eight / 4@, out", "eight"),
    ("w += @4 * kTileRows@)", "64"),
    ("_mm512_loadu_si512(w + @64@)", "0"),
    ("x + @m * x_row@ + k", "m * depth"),
    ("dots[m][0] = dots[m][1] = _mm512_set1_epi32(t.offsets[@first + m@])", "first"),
    ("sums + (first + m) * kTileRows + @16 * v@, dots", "0"),
    ("at = @first * t.runs@ + run", "first"),
    ("t.offsets[at + @m * t.runs@]", "m"),
    ("t.w + @run * t.depth * kTileRows@", "0"),
    ("t.x_row + @run * t.depth@, t.x_row", "0"),
    ("absmax + run * kTileRows + @16 * v@", "0"),
    ("scales[@at + m * t.runs@]", "at"),
    ("first < M; first += @kMost@)", "kMost + 1"),
]
DOORS = """
#include "int8_tiles.h"
using namespace minillama;
extern "C" {
int has(int64_t M, int64_t columns) { return int8_has_tiles(M, columns); }
void fours(const void* from, int64_t row_bytes, int64_t rows, uint32_t* out) {
  interleave_fours(from, row_bytes, rows, out);
}
void levels(const uint8_t* codes, int64_t row_bytes, int64_t rows, const uint8_t* table, uint8_t* out) {
  interleave_levels(codes, row_bytes, rows, table, out);
}
void dots(const uint8_t* w, const int8_t* x, int64_t x_row, int64_t M, int64_t depth, const int32_t* offsets,
          int32_t* sums) {
  int8_tile_dots({w, x, x_row, M, 1, depth, offsets}, sums);
}
void scaled(const uint8_t* w, const int8_t* x, int64_t x_row, int64_t M, int64_t runs, int64_t depth,
            const int32_t* offsets, const float* absmax, const float* scales, float* sums) {
  int8_tile_scaled_dots({w, x, x_row, M, runs, depth, offsets}, absmax, scales, sums);
}
}
"""
ROWS = 32


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """The tiles as a library of their own, in which fault n is in force while `planted` is n."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    folder = shutil.copytree(CSRC, tmp_path_factory.mktemp("tiles") / "csrc") / "cpu"
    plant_all((number, folder / "int8_tiles.cpp", text, wrong) for number, (text, wrong) in enumerate(FAULTS, 1))
    (folder / "doors.cpp").write_text(DOORS + "int planted = 0;\n")
    (folder / "planted.h").write_text("extern int planted;\n")
    torch_headers = [f"-I{path}" for path in cpp_extension.include_paths()]
    command = ["g++", *torch_headers, "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-include", "planted.h",
               "int8_tiles.cpp", "vectors.cpp", "doors.cpp", "-o", "tiles.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    library = ctypes.CDLL(f"{folder}/tiles.so")
    if not library.has(ctypes.c_int64(12), ctypes.c_int64(64)):
        pytest.skip("this CPU has no dot products of bytes (AVX512-VNNI): its products take another way")
    return library


def call(function, *arguments):
    function(*(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in arguments))


def check_fours(library):
    rng = np.random.default_rng(0)
    for rows, fours in ((32, 16), (1, 1), (5, 17), (31, 40), (17, 8)):
        behind = np.zeros(8 * fours, np.uint32)  # were a row too many read, it would be these
        w = np.concatenate([rng.integers(1, 2**32, (rows, fours), np.uint32).ravel(), behind])
        out = np.zeros((fours + 16, ROWS), np.uint32)
        call(library.fours, w, 4 * fours, rows, out)
        assert not out[fours:].any(), "behind the last four nothing is written"
        out = out[:fours]
        w = w[: rows * fours].reshape(rows, fours)
        assert (out[:, :rows] == w.T).all() and (out[:, rows:] == w[-1][:, None]).all()


def check_levels(library):
    rng = np.random.default_rng(1)
    table = rng.permutation(256)[:16].astype(np.uint8)
    for rows, blocks in ((32, 1), (7, 3)):
        codes = rng.integers(0, 256, (rows, 32 * blocks), np.uint8)
        out = np.zeros((16 * blocks, ROWS, 4), np.uint8)
        call(library.levels, codes, 32 * blocks, rows, table, out)
        halves = np.stack([codes & 15, codes >> 4], 1).reshape(rows, 2, blocks, 8, 4)  # (row, half, block, four, byte)
        wanted = table[halves].transpose(2, 1, 3, 0, 4).reshape(16 * blocks, rows, 4)
        assert (out[:, :rows] == wanted).all()


def check_dots(library):
    rng = np.random.default_rng(2)
    for M, depth, apart in ((1, 4, 4), (6, 64, 64), (7, 20, 28), (17, 132, 132)):
        w = rng.integers(0, 256, (depth // 4, ROWS, 4), np.uint8)
        x = rng.integers(-127, 128, (M, apart), np.int8)
        offsets, sums = rng.integers(-1000, 1000, M, np.int32), np.zeros((M, ROWS), np.int32)
        call(library.dots, w, x, apart, M, depth, offsets, sums)
        columns = w.transpose(0, 2, 1).reshape(depth, ROWS).astype(np.int64)
        assert (sums == x[:, :depth].astype(np.int64) @ columns + offsets[:, None]).all()


def check_scaled_dots(library):
    """Scales and absmax are powers of two and dots small, so every sum is exact in fp32."""
    rng = np.random.default_rng(3)
    for M, runs, depth in ((1, 1, 8), (8, 3, 16), (13, 2, 64)):
        w = rng.integers(0, 64, (runs, depth // 4, ROWS, 4), np.uint8)
        x = rng.integers(-15, 16, (M, runs, depth), np.int8)
        offsets = rng.integers(-100, 100, (M, runs), np.int32)
        absmax = 2.0 ** rng.integers(-2, 3, (runs, ROWS)).astype(np.float32)
        scales = 2.0 ** rng.integers(-2, 3, (M, runs)).astype(np.float32)
        sums = np.zeros((M, ROWS), np.float32)
        call(library.scaled, w, x, runs * depth, M, runs, depth, offsets, absmax.astype(np.float32),
             scales.astype(np.float32), sums)
        columns = w.transpose(0, 1, 3, 2).reshape(runs, depth, ROWS).astype(np.int64)
        dots = np.einsum("mrd,rdn->mrn", x.astype(np.int64), columns) + offsets[:, :, None]
        assert (sums == np.einsum("mrn,rn,mr->mn", dots, absmax, scales)).all()


LAWS = (check_fours, check_levels, check_dots, check_scaled_dots)


@pytest.mark.parametrize("law", LAWS)
def test_bytes_lie_where_the_dots_expect_them_and_sums_are_exact(tiles, law):
    ctypes.c_int.in_dll(tiles, "planted").value = 0
    law(tiles)


def test_tiles_are_for_many_rows_of_whole_fours(tiles):
    asked = [(11, 64), (12, 64), (12, 66), (31, 68)]
    assert [bool(tiles.has(*map(ctypes.c_int64, pair))) for pair in asked] == [False, True, False, True]


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{text} -> {wrong}" for text, wrong in FAULTS])
def test_every_fault_breaks_a_law(tiles, number):
    ctypes.c_int.in_dll(tiles, "planted").value = number
    with pytest.raises(AssertionError):
        for law in LAWS:
            law(tiles)
