"""`kernels verify` sees every planted fault of the CUDA kernels: one wrong expression makes the table say WRONG.

The kernels are compiled once, each marked expression as `planted == n ? wrong : right`, and take the place of the
built ones.
"""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import test_nf4_kernel as nf4
import torch
from planted_sources import plant_all
from test_attention_kernel import test_scores_far_from_zero_neither_overflow_nor_vanish as far_scores
from test_attention_wide import FAULTS as WIDE_FAULTS
from test_simt import SIMT

from minillama import kernels
from minillama.parity import kernels_verify
from minillama.simt.compiler import contraction
from minillama.simt.emulator_build import RUNTIME

pytestmark = [pytest.mark.long, pytest.mark.skipif("simt" not in kernels.built_backends(),
                                                   reason=f"the kernels are not built: {kernels.BUILD}")]
FLASH, BACK, NF4, VECTORS = "flash_attention", "flash_attention_backward", "nf4_matmul", "nf4_vectors"
ROPE, ROPE_V1, TENSOR, NF4_TENSOR = "rope_vectors", "rope", "flash_tensor_cores", "nf4_tensor_cores"
TILES, NF4_BACK, NF4_PLAIN = "flash_fragments", "nf4_backward_tensor_cores", "nf4_backward_tiles"
NF4_ONE = "nf4_one_row"
BRAIN, HALF = "float(__nv_bfloat16({}))", "float(__half({}))"

FAULTS = [  # file of csrc/cuda; text that occurs there once, with @what is right@ in it; what is wrong instead
    # causal mask
    (FLASH, "@key <= query + shape.keys - shape.queries@", "key < query + shape.keys - shape.queries"),
    (FLASH, "@key <= query + shape.keys - shape.queries@", "key <= query + 1 + shape.keys - shape.queries"),
    (FLASH, "last_seen + 1 < shape.keys ? @last_seen + 1@", "last_seen"),
    (BACK, "bool visible = @sees(shape, seen, batch, query, start + key)@",
     "sees(shape, seen, batch, query, start + key + 1)"),
    (BACK, "query < shape.queries && @sees(shape, seen, batch, query, key)@",
     "sees(shape, seen, batch, query - 1, key)"),
    (BACK, "@(first - shift) / kTile<D> * kTile<D>@", "(first - shift) / kTile<D> * kTile<D> + 1"),
    # scale of the softmax
    (FLASH, "c = @shape.scale * kLog2E@", "kLog2E"),
    (FLASH, "c = @shape.scale * kLog2E@", "shape.scale * kLog2E * 1.0001f"),
    (BACK, "my_delta = inside ? delta[place] : 0, c = @shape.scale * kLog2E@", "kLog2E"),
    (BACK, "shape.queries;\n  const float c = @shape.scale * kLog2E@", "shape.scale * kLog2E * 1.0001f"),
    # the last tile, or what is left for it
    (FLASH, "@start < keys_end(shape, first, kTile<D>)@", "start + kTile<D> < keys_end(shape, first, kTile<D>)"),
    (FLASH, "@start < keys_end(shape, first, kTile<D>)@", "start + kTile<D> <= keys_end(shape, first, kTile<D>)"),
    (BACK, "@start < keys_end(shape, first, kTile<D>)@", "start + kTile<D> <= keys_end(shape, first, kTile<D>)"),
    (BACK, "@start < shape.queries@", "start + kTile<D> <= shape.queries"),
    (FLASH, "@key < shape.keys@", "key + 1 < shape.keys"),
    (FLASH, "@column < width@", "column + 1 < width"),
    (BACK, "@c < d@; c += 32", "c + 32 <= d"),
    (NF4, "@n >= w.rows@", "n + 1 >= w.rows"),
    (NF4, "@k >= K@", "k + 1 >= K"),
    (VECTORS, "@n < w.rows@ && m < M", "n + 1 < w.rows"),
    (VECTORS, "n < w.rows && @m < M@", "(M == 1 || m + 1 < M)"),
    (VECTORS, "int64_t k0 = 0; @k0 < K@", "k0 == 0 || k0 + kNF4Step <= K"),
    (VECTORS, "m < M && @n < N@", "n + 1 < N"),
    (VECTORS, "@first + threadIdx.x < K@", "first + threadIdx.x + 1 < K"),
    (ROPE, "real = @batch < shape.batch@", "token + 1 < shape.batch * shape.tokens"),
    (ROPE, "i < half; @i += 32@", "i += 33"),
    # the row of a position, and which columns are a pair
    (ROPE, "rotations + @token.row * (2 * half)@", "(token.row ? token.row - 1 : 0) * (2 * half)"),
    (ROPE, "(@token.row * half + i@) * 2", "(token.row ? token.row - 1 : 0) * half + i"),
    (ROPE, "first = @shape.interleaved@ ?", "!shape.interleaved"),
    (ROPE, "else if (@shape.interleaved@)", "!shape.interleaved"),
    (ROPE, "@shape.inverse ? -1.0f : 1.0f@", "1.0f"),
    (ROPE, "turn(x0, x1, c, @shape.inverse ? -s : s@)", "s"),
    # levels and scales of NF4
    (NF4, "tables.level[i] = @kNF4Levels[i]@", "kNF4Levels[i == 5 ? 6 : i]"),
    (NF4, "tables.level[i] = @kNF4Levels[i]@", "kNF4Levels[i] * (i == 5 ? 1.0001f : 1.0f)"),
    (NF4, "@element % 2@ ? pair & 15", "element % 2 == 0"),
    (VECTORS, "4 * (@i % 2@)", "1 - i % 2"),
    (NF4, "return @__fadd_rn(centred, *w.absmax_offset)@", "centred"),
    (NF4, "w.absmax_scale[@block / 256@]", "0"),
    # a factor of a gradient
    (BACK, "@p * (dot<D>(dO[row], V[key]) - my_delta)@", "p * dot<D>(dO[row], V[key])"),
    (BACK, "@dot<D>(dO[i], V[row]) - delta[of_head + query]@", "dot<D>(dO[i], V[row])"),
    (BACK, "@p * (dot<D>(dO[row], V[key]) - my_delta)@", "dot<D>(dO[row], V[key]) - my_delta"),
    (BACK, "@sum[e] * shape.scale@", "sum[e]"),
    (BACK, "@sum_k[e] * shape.scale@", "sum_k[e]"),
    # sums in fewer bits than fp32
    (FLASH, "O[e] = @O[e] * alpha + sum@", BRAIN.format("O[e] * alpha + sum")),
    (FLASH, "O[e] = @O[e] * alpha + sum@", HALF.format("O[e] * alpha + sum")),
    (FLASH, "@even + odd@", BRAIN.format("even + odd")),
    (FLASH, "@even + odd@", HALF.format("even + odd")),
    (FLASH, "l += @p@;", HALF.format("p")),
    (FLASH, "P[row][member + kTeam * i] = @p@", HALF.format("p")),
    (BACK, "sum[e] += @part@", HALF.format("part")),
    (BACK, "sum_k[e] += @part_k@", HALF.format("part_k")),
    (BACK, "sum_v[e] += @part_v@", HALF.format("part_v")),
    (NF4, "sum += @of_chunk@;\n    }\n    y[", HALF.format("of_chunk")),
    (NF4, "sum += @of_chunk@;\n    }\n    dx[", HALF.format("of_chunk")),
    (VECTORS, "sums[r][m] += @of_lane[r][m] * absmax[r]@", HALF.format("of_lane[r][m] * absmax[r]")),
    (VECTORS, "sum += @parts[i][turned(threadIdx.x / kNF4Columns, threadIdx.x % kNF4Columns)]@",
     HALF.format("parts[i][turned(threadIdx.x / kNF4Columns, threadIdx.x % kNF4Columns)]")),
    (ROPE_V1, "first = T(@x0 * c - x1 * s@);", HALF.format("x0 * c - x1 * s")),
    (FLASH, "@float(data[(first + row) * stride + column])@", HALF.format("data[(first + row) * stride + column]")),
    (BACK, "delta[place] = @sum@ -", HALF.format("sum")),
    (BACK, "@p * (dot<D>(dO[row], V[key]) - my_delta)@",
     HALF.format("p * (dot<D>(dO[row], V[key]) - my_delta)")),
    (VECTORS, "mine = @sums[r][m]@", HALF.format("sums[r][m]")),
    # what earlier tiles are worth
    (FLASH, "l *= @alpha@", "1.0f"),
    (FLASH, "@O[e] * alpha + sum@", "O[e] + sum"),
    (FLASH, "INFINITY, l = 0, saw = 0, O[D / kTeam] = {};\n  for (int64_t start = @0@", "kTile<D>"),
    # heads
    (FLASH, "kv_head = @head / (shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (BACK, "kv_head = @head / (shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (BACK, "head = kv_head * group; @head < (kv_head + 1) * group@", "head < kv_head * group + 1"),
    # overflow
    (FLASH, "highest = @team_max(highest)@", "0.0f"),
    # tensor cores: masks, what earlier tiles are worth, which rows and columns a fragment has
    (TENSOR, "i % 2 >= @ends[i / 2]@", "ends[0]"),
    (TENSOR, "i % 2 >= @ends[i / 2]@", "ends[i / 2] + 1"),
    (TENSOR, "state.sum *= @alpha@", "1.0f"),
    (TENSOR, "O[n][2 * half] *= @alpha@,", "1.0f"),
    (TILES, "ldmatrix_x4(b, K + @swizzled<D>(n * 8 + row, 2 * k + half)@)", "swizzled<D>(n * 8 + row, 2 * k)"),
    (TILES, "swizzled<D>(@k * 16 + lane % 16@, n + lane / 16)", "k * 16 + lane % 8"),
    (TENSOR, "kv_head = @unsigned(head) / unsigned(shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (TENSOR, "__fmaf_rn(S[n][i], @c@, -base)", "c * 1.001f"),
    (TILES, "from + @c * 8@, inside", "0"),
    (TENSOR, "1 / @sum@ : 0", "(sum * 1.01f)"),
    # NF4 on tensor cores: codes to levels, fragments, scales, stages, parts of K
    (NF4_TENSOR, "seven = @codes & 0x7777@", "codes & 0x3777"),
    (NF4_TENSOR, "half = (@codes >> 1 & 0x4444@)", "codes >> 1 & 0x0444"),
    (NF4_TENSOR, "__byte_perm(low, high, @0x4051@)", "0x5140"),
    (NF4_TENSOR, ">> 16 * (@s % 2@)", "0"),
    (NF4_TENSOR, "A[m][s][1] = @lower.x@", "upper.x"),
    (NF4_TENSOR, "@row < rows@ && part", "row + 1 < rows"),
    (NF4_TENSOR, "@row < wide@ && part", "row + 1 < wide"),
    (NF4_TENSOR, "row < wide && @part < parts@", "part + 1 < parts"),
    (NF4_TENSOR, "@mine * K + k@ >> log_block", "mine * K"),
    (NF4_TENSOR, "right = __shfl_sync(kAllLanes, absmax, @8 * n + 2 * t + 1@)", "8 * n + 2 * t"),
    (NF4_TENSOR, "stage = @(stage + 1) % kStages@", "0"),
    (NF4_TENSOR, "p < @Parts@", "1"),
    (NF4_TENSOR, "T(@sum / kNF4Shrink@)", "sum"),
    # one row of x: look-ups, columns, rows, parts of K
    (NF4_ONE, "tables.level[@byte >> 4@] * kNF4Shrink", "byte & 15"),
    (NF4_ONE, "word >> (8 * byte - 7)) & @0x7f80@", "0x3f80"),
    (NF4_ONE, "if (@k0 + i < K@) some", "k0 + i + 8 < K"),
    (NF4_ONE, "nf4_absmax(w, tables, @first[r] + k@ >> log_block)", "first[r]"),
    (NF4_ONE, "min(@n0 + r@, w.rows - 1)", "n0"),
    (NF4_ONE, "@of_warp[half][r] + of_warp[half + 2][r]@", "of_warp[half][r]"),
    # the gradient on tensor cores: rows and columns of codes, pairs of rows, scales, tails, stages, parts of N
    (NF4_BACK, "codes_of(@row + 1@)", "row"),
    (NF4_BACK, "codes_of(row + 1), @0x5140@)", "0x4051"),
    (NF4_BACK, "__byte_perm(lows, highs, @0x7351@)", "0x6240"),
    (NF4_BACK, "both >> @16 * j@", "16 * (1 - j)"),
    (NF4_BACK, "scales.low[warp][row] = T(@absmax[turn] - float(high)@)", "absmax[turn]"),
    (NF4_BACK, "&scales.high[across][@row@]", "row ^ 2"),
    (NF4_BACK, "n * w.columns + @k@ >> log_block", "0"),
    (NF4_BACK, "@m0 + row < M@ &&", "m0 + row + 1 < M"),
    (NF4_BACK, "@n0 + chunk * 8 < N@", "n0 + chunk * 8 + 8 < N"),
    (NF4_BACK, "@n < N && k < K@ ? 16", "n + 1 < N && k < K"),
    (NF4_BACK, "part < @Parts@;", "1"),
    (NF4_BACK, "sums[m][i % 4][@2 * half + i / 4@]", "2 * half"),
    (NF4_BACK, "level_bytes<T>(@1@)", "kNF4Shrink"),
    *WIDE_FAULTS,
]
EDGES = [  # what only `kernels verify --thorough` sees
    (FLASH, "T(@sees_any ? O[e] / l : 0.0f@)", "l > 0 ? O[e] / l : 0.0f"),
    (FLASH, "inside = @first + row < rows@ && column", "first + row <= rows"),
    (FLASH, "const bool inside = first + row < rows && @column < width@", "column <= width"),
    (TILES, "inside = @row + r < there@ &&", "row + r <= there"),
    (TENSOR, "const unsigned both = packed<T>(@x@, y)", "(x == x ? x : 0)"),
    ("flash_wide", "shape.keys, @d - half * W@, aligned", "d"),
    (NF4_ONE, "load_codes(ahead, w, first, @k + kOneParts * kNF4Step@)", "k"),
    (NF4_BACK, "stage = @(stage + 1) % Tile::kStages@", "(stage + 1) % 2"),
]
BEYOND = [  # what only scales above 65504 in fp16 see
    (NF4_PLAIN, "return @__any_sync(kAllLanes, beyond)@", "false"),
    (NF4_PLAIN, "return @__any_sync(kAllLanes, beyond)@", "beyond"),
    (NF4_PLAIN, "(@i + threadIdx.x % 32@) % Tile::kOfWarp", "threadIdx.x % 32 / 2"),
    (NF4_PLAIN, "n * w.columns + @k@ >> log_block", "k0"),
    (NF4_PLAIN, "row / 64 * @Rows@ * 64", "0"),
    (NF4_PLAIN, "(c / 2 * 8 + @4 - c % 2 * 4@)", "c % 2 * 4"),
    (NF4_PLAIN, "[m % 2 * 2 + @c / 4@]", "0"),
]

ALLOWED = [(file, f"{before}@exp2f({x})@", f"two_units_off(exp2f({x}))") for file, before, x in (  # together, as -1
    (FLASH, "p = ", "(s[i] - base) * c"), (FLASH, "alpha = ", "(m - base) * c"),
    (BACK, "return ", "(score - row.x) * c"))]
FUSABLE = [  # right where a product is rounded before it is subtracted, wrong where nvcc fuses the two
    (FLASH, "p = @exp2f((s[i] - base) * c)@", "exp2f(s[i] * c - base * c)"),
    (FLASH, "alpha = @exp2f((m - base) * c)@", "exp2f(m * c - base * c)"),
    (BACK, "return @exp2f((score - row.x) * c)@", "exp2f(score * c - row.x * c)"),
]
FLAGS = ["-std=c++17", "-ffp-contract=off", *contraction(True), "-fexpensive-optimizations"]  # products and sums fused
BEGIN = """
#include <cstdint>
#include <cstring>
extern "C" { int planted; }
// What exp2f may give on a GPU, up to two units in the last place off; the bits say to which side.
static float two_units_off(float y) {
  uint32_t bits;
  std::memcpy(&bits, &y, 4);
  if (y > 0x1p-100f) bits += (bits * 2654435761u >> 31) * 4 - 2;
  std::memcpy(&y, &bits, 4);
  return y;
}
"""


def with_faults(folder):
    """A copy of csrc in `folder` in which fault n is in force while the variable `planted` is n."""
    numbered = [*enumerate(FAULTS, 1), *enumerate(FUSABLE, 1001), *enumerate(EDGES, 2001),
                *enumerate(BEYOND, 3001), *((-1, one) for one in ALLOWED)]
    shutil.copytree(SIMT.parent, folder, dirs_exist_ok=True)
    plant_all((number, folder / "cuda" / f"{name}.cuh", text, wrong) for number, (name, text, wrong) in numbered)


def compiled():
    """The library of the kernels with all faults, its variable `planted` being 0."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    with tempfile.TemporaryDirectory() as folder:
        with_faults(Path(folder))
        sources = [f"simt/{name}" for name in RUNTIME if "/" not in name] + ["simt_kernels.cpp"]
        together = BEGIN + "".join(f'#include "{folder}/{name}"\n' for name in sources)
        command = ["g++", *FLAGS, "-O1", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-fno-gnu-unique", "-w",
                   "-pthread", "-I", folder, "-x", "c++", "-", "-ldl", "-lrt", "-o", f"{folder}/planted.so"]
        done = subprocess.run(command, input=together, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return ctypes.CDLL(f"{folder}/planted.so")


@pytest.fixture(scope="module")
def planted():
    """(number) -> None: plants that fault in the kernels of backend "simt"; 0 plants none."""
    library = compiled()
    library.minillama_kernels.restype = ctypes.c_int64
    torch.ops.minillama_simt.use_kernels(library.minillama_kernels())
    yield lambda number: setattr(ctypes.c_int.in_dll(library, "planted"), "value", number)
    torch.ops.minillama_simt.use_kernels(0)


def wrong_rows(name, thorough=False):
    operator = next(operator for operator in kernels_verify.CASES if name.startswith(operator.split("_")[0]))
    return [row for row in kernels_verify.verify(["simt"], [operator], thorough) if not row.ok]


def test_without_a_fault_every_row_is_right(planted):
    planted(0)
    assert not any(map(wrong_rows, (FLASH, NF4, ROPE)))


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{name}: {text} -> {wrong}"
                                                                 for name, text, wrong in FAULTS])
def test_every_fault_makes_a_row_wrong(planted, number):
    planted(number)
    assert wrong_rows(FAULTS[number - 1][0])


@pytest.mark.parametrize("number", range(2001, 2001 + len(EDGES)), ids=[f"{name}: {text} -> {wrong}"
                                                                        for name, text, wrong in EDGES])
def test_every_fault_at_an_edge_makes_a_row_of_the_thorough_table_wrong(planted, number):
    planted(number)
    assert wrong_rows(EDGES[number - 2001][0], thorough=True)


@pytest.mark.parametrize("number", range(3001, 3001 + len(BEYOND)), ids=[f"{text} -> {wrong}"
                                                                        for _, text, wrong in BEYOND])
def test_every_fault_beyond_fp16_breaks_the_law_of_large_scales(planted, number):
    planted(number)
    with pytest.raises((AssertionError, RuntimeError)):  # or lanes that wait for each other for ever
        for shape in ((8, 264, 64), (17, 136, 96), (40, 72, 160), (65, 136, 6848)):
            nf4.test_scales_above_65504_give_the_gradient_in_fp16_that_fp32_gives(*shape, False)
    planted(0)


@pytest.mark.parametrize("number", range(1001, 1001 + len(FUSABLE)), ids=[wrong for *_, wrong in FUSABLE])
def test_a_product_that_is_fused_with_its_subtraction_costs_attention_its_far_scores(planted, number):
    planted(0)
    far_scores(12)
    planted(number)
    with pytest.raises(AssertionError):
        far_scores(12), far_scores(80)


def test_exponentials_off_by_two_units_are_within_the_bounds_of_attention_and_need_a_twentieth(planted):
    """No wider than they need be for a processor that does what it may, the other roundings being as they come."""
    planted(-1)
    rows = list(kernels_verify.verify(["simt"], ["flash_attention"]))
    assert all(row.ok for row in rows)
    assert max(row.error / row.allowed for row in rows if row.dtype == torch.float32) > 0.05
