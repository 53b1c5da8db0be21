"""Rounded products of a GGUF file's blocks, few rows and many: every kind of loops gives the same whole numbers, and
this law sees every fault planted in the tiles."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_sources import plant_all
from torch.utils import cpp_extension

from minillama.checkpoint.gguf_blocks import BLOCKS

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = ("gguf_tiles.cpp", "gguf_row.cpp", "gguf_dots.cpp", "int8_tiles.cpp", "int8_rows.cpp", "vectors.cpp")
TILES, ROW = "gguf_tiles.cpp", "gguf_row.cpp"
FAULTS = [  # file; text that occurs there once, with @what is right@ in it; what is wrong instead
    (TILES, "columns % 64 == @0@;", "32"),
    (TILES, "codes + @64 * group@, found.q", "0"),
    (TILES, "i < @64 / kRun<block>@; ++i", "1"),
    (TILES, "of_fours[@i * kRun<block> / 4@]", "0"),
    (TILES, "x.fours[@i * fours + j@]", "i * fours"),
    (TILES, "@1 << kZero<block>@", "(1 << kZero<block>) / 2"),
    (TILES, "x.scales[@i * kRun<block> / kPart@]", "i"),
    (TILES, "w + @(first + r) * row_bytes@, K", "r * row_bytes"),
    (TILES, "&codes[@r * K@]", "0"),
    (TILES, "&scales[@r@]);", "0"),
    (TILES, "y + @m * y_row + first - begin@)", "m * y_row"),
    (ROW, "@at / 16 * kPart@ + 16 * v", "0"),
    (ROW, "+ @16 * v@ + at % 16", "0"),
    (ROW, "at % 16 : @64 * v@ + at;", "0"),
    (ROW, "column = @i / 32 * kLine@ + column_of", "0"),
    (ROW, "fours[@column / 4@] * (1", "0"),
    (ROW, "fours[column / 4] * (@1 << kZero<block>@)", "(1 << kZero<block>) - 1"),
    (ROW, "scales[@column / kPart@]", "column / kLine"),
    (ROW, "codes_from<block>(@1@, 0, 4)", "0"),
    (ROW, "codes_from<block>(9, @4@, 36)", "5"),
    (ROW, "scales_from<block>(@32@)", "33"),
    (ROW, "word < first + 32 ? word - first : @32@ + word", "31"),
    (ROW, "std::max<int64_t>(0, @words - begin@)", "words - begin - 9"),
    (ROW, "w + @2 * begin@);", "begin"),
    (ROW, "_mm512_srli_epi16(both, @4@)", "3"),
    (ROW, "zero = _mm512_set1_epi8(@-128@)", "127"),
    (ROW, "w + @192@)", "193"),
    (ROW, "half_at(w + @208@)", "206"),
    (ROW, "load(w + @128 + 32 * half@)", "128"),
    (ROW, "_mm512_loadu_si512(w + @64 * half@)", "0"),
    (ROW, "_mm512_set1_epi32(@8 * half + 4 * v@)", "4 * v"),
    (ROW, "_mm512_load_ps(x[half].scale[@v@])", "0"),
    (ROW, "left = @columns % kLine / kPart * kWords<block>@", "0"),
    (ROW, "add_line<block>(w, x[@whole@], left", "0"),
    (ROW, "w += @2 * left@;", "0"),
    (ROW, "w += begin * @(columns / layout_of(block).numbers * layout_of(block).bytes)@", "0"),
]
DOORS = """
#include "gguf_dots.h"
#include "vectors.h"
using namespace minillama;
extern "C" {
int choose(const char* name) { return choose_vectors(name); }
int vnni() { return vectors_have_vnni(); }
void product(int block, const uint8_t* w, const float* x, int64_t M, int64_t columns, int64_t begin, int64_t end,
             float* y) {
  GGUFRows rows;
  gguf_lay_out(static_cast<Block>(block), x, M, columns, rows);
  gguf_rounded_rows(static_cast<Block>(block), w, rows, begin, end, y, end - begin);
}
}
int planted = 0;
"""
SHAPES = ((1, 1, 256), (5, 3, 96), (33, 11, 256), (33, 12, 64), (70, 13, 256), (9, 19, 512), (7, 12, 96),
          (37, 1, 352), (9, 1, 32), (5, 1, 1216))  # rows, M, K
TYPES = {block.name: block for block in BLOCKS.values() if block.name in ("Q4_0", "Q8_0", "Q6_K")}
KINDS = ("plain", "avx2", "avx512")


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """The loops as a library of their own, in which fault n is in force while `planted` is n."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    folder = shutil.copytree(CSRC, tmp_path_factory.mktemp("blocks") / "csrc") / "cpu"
    plant_all((number, folder / name, *fault) for number, (name, *fault) in enumerate(FAULTS, 1))
    (folder / "doors.cpp").write_text(DOORS)
    (folder / "planted.h").write_text("extern int planted;\n")
    headers = [f"-I{path}" for path in cpp_extension.include_paths()]
    command = ["g++", *headers, "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-include", "planted.h", *SOURCES,
               "doors.cpp", "-o", "blocks.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(f"{folder}/blocks.so")


def whole_blocks(name, rows, columns, generator):
    """Random codes whose scales are powers of two, and Q6_K's own ones at most 8."""
    block = TYPES[name]
    raw = torch.randint(256, (rows, columns // block.numbers, block.bytes), generator=generator, dtype=torch.uint8)
    if name == "Q6_K":
        raw[..., 192:208] = raw[..., 192:208] % 9
    at, power = (208 if name == "Q6_K" else 0), torch.randint(-1, 3, raw.shape[:2], generator=generator)
    raw[..., at:at + 2] = (2.0 ** power).half()[..., None].view(torch.uint8)
    return raw.flatten()


def check_whole_sums(library, kinds):
    """The largest number of a part of x is 127 times a power of two, and the others are few times it: codes times a
    scale, and all sums whole multiples of 1/4 below 2^22, so exact. The first third of W's rows is not asked for."""
    generator = torch.Generator().manual_seed(0)
    for name, block in TYPES.items():
        for rows, M, columns in (shape for shape in SHAPES if shape[-1] % block.numbers == 0):
            raw = whole_blocks(name, rows, columns, generator)
            x = torch.randint(-3, 4, (M, columns), generator=generator)
            x.view(M, -1, 32)[..., 7] = 127
            x = x * (2.0 ** torch.randint(-1, 2, (M, columns // 32), generator=generator)).repeat_interleave(32, 1)
            begin = rows // 3
            wanted = x.double() @ block.decode(raw).view(rows, columns).double()[begin:].T
            for kind in kinds:
                assert library.choose(kind.encode())
                y = np.zeros((M, rows - begin), np.float32)
                numbers = [ctypes.c_int64(n) for n in (M, columns, begin, rows)]
                library.product({"Q4_0": 0, "Q8_0": 1, "Q6_K": 2}[name], ctypes.c_void_p(raw.data_ptr()),
                                ctypes.c_void_p(x.data_ptr()), *numbers, ctypes.c_void_p(y.ctypes.data))
                assert (y == wanted.numpy()).all(), (name, kind, rows, M, columns)


def kinds_of(library):
    return [kind for kind in KINDS if library.choose(kind.encode())]


def test_every_kind_of_loops_gives_the_same_whole_numbers(loops):
    ctypes.c_int.in_dll(loops, "planted").value = 0
    check_whole_sums(loops, kinds_of(loops))


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{fault[1]} -> {fault[2]}" for fault in FAULTS])
def test_every_fault_breaks_the_law(loops, number):
    if not (loops.choose(b"avx512") and loops.vnni()):
        pytest.skip("this CPU has no dot products of bytes (AVX512-VNNI): its products take another way")
    ctypes.c_int.in_dll(loops, "planted").value = number
    with pytest.raises(AssertionError):
        check_whole_sums(loops, ["avx512"])
