"""The laws of the engine see every planted fault of its C++: one wrong expression makes one of them fail.

The sources are compiled once more, under names of their own, each marked expression as `planted == n ? wrong : right`.
"""

import ctypes
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from planted_sources import plant_all
from test_engine import linear_of
from test_engine import test_int8_products_follow_the_rules_of_llm_int8 as int8_law
from test_engine import test_nf4_products_are_those_of_the_dequantized_weight as nf4_law
from test_engine import test_products_of_plain_numbers_are_within_the_bound_of_a_sum as plain_law
from test_engine import test_zeros_and_numbers_that_are_none_pass_through_int8 as strange_law
from test_engine_decoding import ODD, check_every_stage, lively_model
from test_engine_decoding import test_pytorch_and_the_engine_share_a_cache as shared_cache_law
from test_gguf_linear import test_compiled_loops_read_the_numbers_of_the_plain_form as blocks_read_law
from test_gguf_linear import test_exact_products_are_within_the_bound_of_a_sum as blocks_exact_law
from test_gguf_linear import test_rounded_products_are_sums_of_integers_scaled_in_fp32 as blocks_rounded_law
from torch.utils import cpp_extension

from minillama import kernels
from minillama.engine import matrix_of

pytestmark = [pytest.mark.long, pytest.mark.skipif("cpu" not in kernels.built_backends(),
                                                   reason=f"not built: {kernels.BUILD}")]
CSRC = Path(__file__).resolve().parents[1] / "csrc"
ENGINE, MATRIX, LANES, CODES = "engine.cpp", "matrix.cpp", "lanes.h", "matrix_codes.cpp"
DOTS, BLOCKS, ROWS, ROW_PARTS = "gguf_dots.cpp", "gguf_codes.h", "gguf_rows.cpp", "gguf_rows.h"

FAULTS = [  # file of csrc/cpu; text that occurs there once, with @what is right@ in it; what is wrong instead
    (ENGINE, "std::sqrt(@mean + model_.norm_eps@)", "mean"),
    (ENGINE, "std::sqrt(@mean + model_.norm_eps@)", "mean * D + model_.norm_eps"),
    (ENGINE, "row_loops().normalize(x, scale, @gain_.data()@", "x"),
    (ENGINE, "max<int64_t>(0, @cache.length - pad@)", "cache.length"),
    (ENGINE, "static_cast<float>(@position@)", "position + 1"),
    (ENGINE, "head[i] = @a * cos - b * sin@", "a * cos + b * sin"),
    (ENGINE, "head[i + 1] = @a * sin + b * cos@", "b * cos"),
    (ENGINE, "&rotations_[@b * d@]", "0 * d"),
    (ENGINE, "from = @(b * K + k) * d@;", "b * K * d"),
    (ENGINE, "* cache.max_len + @cache.length@) * d;", "0"),
    (ENGINE, "write(cache.form, cache.values, to, @&v_[from]@", "&k_[from]"),
    (ENGINE, "group = @H / model_.kv_heads@, S", "1"),
    (ENGINE, "@cache.left_pad ? std::min(cache.left_pad[b], S - 1) : 0@", "0"),
    (ENGINE, "softmax(scores + g * S + @pad@", "0"),
    (ENGINE, "std::sqrt(static_cast<float>(@d@))", "d + 1"),
    (ENGINE, "S, group, pad, @S@, &mixed_", "S - (S > pad + 1)"),
    (ENGINE, "x_[i] += @out_[i]@", "out_[i] - x_[i]"),
    (ENGINE, "gate(&gate_[at], @&up_[at]@", "&gate_[at]"),
    (ENGINE, "&gate_[at], @end - first@);", "end - first - 1"),
    (ENGINE, "at < @B * w.w1.rows@;", "w.w1.rows"),
    (ENGINE, "read_row(model_.embeddings, @tokens[b]@", "tokens[0]"),
    (MATRIX, "load<lanes>(x + @m * columns + at + c * lanes@)", "at + c * lanes"),
    (MATRIX, "for (int m = 0; m < n; ++m) sums[m] += @static_cast<float>(w[k])@", "static_cast<float>(w[0])"),
    (MATRIX, "for (int c = 0; c < @at_once@; ++c) total[m]", "at_once - 1"),
    (MATRIX, "dot_rows<lanes, n>(values + @r@ * w.columns", "first"),
    (MATRIX, "for (int m = 0; m < n; ++m) y[m * w.rows + @r@]", "first"),
    (MATRIX, "sum[m][c] += @weights[m * apart + r]@", "weights[m * apart + first]"),
    (MATRIX, "multiply_some<lanes, 2, Stored>(w, from + @m * w.columns@", "0"),
    (MATRIX, "combine_some<lanes, 1, Stored>(w, weights + @m * apart@", "0"),
    (MATRIX, "begin = @row * w.columns@", "0"),
    (LANES, "__builtin_convertvector(half, Bits) << @16@", "15"),
    (LANES, "(size << 13) * @0x1p112f@", "0x1p111f"),
    (LANES, "(half & @0x8000@) << 16", "0"),
    (CODES, "(w.values) + @row * (w.columns / layout.numbers * layout.bytes)@", "0 * row"),
    (CODES, "y[m * w.rows + r] = @sums[m]@", "sums[0]"),
    (DOTS, "-(four[0] + four[1] + four[2] + @four[3]@)", "four[0]"),
    (DOTS, "scale /= @127.0f@", "128.0f"),
    (DOTS, "t.fours + @m * (t.columns / 4)@ + 16", "0"),
    (DOTS, "t.scales + @m * parts@ + 2", "0"),
    (DOTS, "add_plain<block, R, M>(t, @t.columns / 64 * 2@, sums)", "t.columns / kPart"),
    (DOTS, "({w + @r * row_bytes@, row_bytes", "begin * row_bytes"),
    (DOTS, "y_row + @r - begin@ + i", "0 * r"),
    (BLOCKS, "two_halves(from, from + @34@)", "0"),
    (BLOCKS, "two_halves(from, from + @18@)", "0"),
    (BLOCKS, "half = @group % 4 / 2@", "0"),
    (BLOCKS, "second = @group % 2@", "0"),
    (BLOCKS, "from + 192 + @4 * (group % 4)@", "0"),
    (BLOCKS, "w + @group / 4 * 210@", "0"),
    (ROWS, "_mm512_set1_ps(scales[@4 * i@])", "0"),
    (ROW_PARTS, "(bytes[2 + i] >> 4) - @8@", "7"),
]
BEFORE = 'extern "C" int planted;\n'


def with_faults(folder):
    """A copy of csrc in `folder`, under another namespace, in which fault n is in force while `planted` is n."""
    shutil.copytree(CSRC, folder, dirs_exist_ok=True)
    plant_all((number, folder / "cpu" / name, text, wrong) for number, (name, text, wrong) in enumerate(FAULTS, 1))
    for path in [path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cuh")]:
        source = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"\bminillama\b", "minillama_planted", source), encoding="utf-8")


def sources():
    """What setup.py compiles for processors, and the engine's binding."""
    text = (CSRC.parent / "setup.py").read_text(encoding="utf-8")
    ours = re.findall(r'"csrc/(cpu/(?!bpe|byte|word|unigram)\w+\.cpp|bind_engine\.cpp|bind_matrix\.cpp)"', text)
    return [name for name in ours if name != "cpu/rope.cpp"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(number) -> None: plants that fault; 0 plants none. `torch.classes.minillama` is the engine with the faults."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    folder = tmp_path_factory.mktemp("planted")
    with_faults(folder)
    (folder / "planted.h").write_text(BEFORE)
    (folder / "planted.cpp").write_text('#include "planted.h"\nint planted = 0;\n')
    includes = [f"-I{path}" for path in (folder, *cpp_extension.include_paths(), sysconfig.get_path("include"))]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    done = subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-fopenmp", *includes, "-include",
                           f"{folder}/planted.h", *sources(), "planted.cpp", *libraries, "-ltorch", "-ltorch_cpu",
                           "-lc10", "-o", "planted.so"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    torch.ops.load_library(f"{folder}/planted.so")
    library = ctypes.CDLL(f"{folder}/planted.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.classes, "minillama", torch.classes.minillama_planted, raising=False)
        yield lambda number: setattr(ctypes.c_int.in_dll(library, "planted"), "value", number)


def all_laws():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain_law(dtype, None)
    int8_law(6.0, None)
    strange_law(None)
    nf4_law(64, True, None)
    for name in ("Q4_0", "Q8_0", "Q6_K"):
        for blocks_law in (blocks_read_law, blocks_exact_law, blocks_rounded_law):
            blocks_law(name, None)
    for number in range(len(ODD)):
        check_every_stage(lively_model(ODD[number], seed=number), 3)
    check_every_stage(lively_model(ODD[0]), 4, pads=[0, 3, 11, 19])
    check_every_stage(lively_model(ODD[1], torch.float16), 2, factor=1)
    shared_cache_law()  # positions: attention alone sees their differences
    for kind in ("nf4", "int8", "mixed"):
        check_every_stage(lively_model(ODD[1], kind=kind), 3)


def test_without_a_fault_every_law_holds(planted):
    planted(0)
    all_laws()
    matrix = matrix_of(linear_of(torch.ones(2, 3)))
    assert "minillama_planted" in str(matrix._type()), "the faults are in what the laws ask"


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{name}: {text} -> {wrong}"
                                                                 for name, text, wrong in FAULTS])
def test_every_fault_breaks_a_law(planted, number):
    planted(number)
    with pytest.raises(AssertionError):
        all_laws()
