"""The laws of decoding, of gradients on tensor cores and of masks see every planted fault of their CUDA code.

The kernels are compiled once, each marked expression as `planted == n ? wrong : right`, and take the place of the
built ones (the other kernels' faults: test_kernels_planted.py).
"""

import ctypes
import shutil
import subprocess

import pytest
import test_attention_decoding as decoding
import test_attention_gradients as gradients
import test_attention_masks as masked
import test_cuda_attention as append
import torch
from planted_sources import plant_all
from test_simt import SIMT

from minillama import kernels
from minillama.simt.emulator_build import RUNTIME

pytestmark = [pytest.mark.long, pytest.mark.skipif("simt" not in kernels.built_backends() or not shutil.which("g++"),
                                                   reason=f"the kernels are not built: {kernels.BUILD}")]
DECODING, GRADIENTS, TILES = "flash_decoding.cuh", "flash_backward_tensor_cores.cuh", "flash_fragments.cuh"
SHARES = "flash_gradient_tiles.cuh"
PART, APPEND = "flash_decoding_part.cuh", "flash_decoding_append.cuh"
MASK, PARTS, FORWARD = "flash_mask.cuh", "flash_mask_tiles.cuh", "flash_tensor_cores.cuh"
PLAIN, PLAIN_BACK = "flash_attention.cuh", "flash_attention_backward.cuh"

FAULTS = [  # file of csrc/cuda; text that occurs there once, with @what is right@ in it; what is wrong instead
    # decoding: which keys are seen, and which are read
    (DECODING, "visible && @key <= rows.last[r]@", "key < rows.last[r]"),
    (DECODING, "masked && (r == 0 || (@!one_query@ &&", "false"),
    (DECODING, "last = shape.causal ? @query + shape.keys - shape.queries@", "query"),
    (DECODING, "mask.data + @batch * mask.batch@", "0"),
    (DECODING, "batch * mask.batch + @query * mask.query@", "0"),
    (PART, "seen[u] = @key < end@", "key < end - 1"),
    (PART, "load_chunk<N>(keys + key * key_row + column, @seen[u] != 0@ ? d", "true"),
    (PART, "there = @wanted[key / 8] >> (key % 8 * kTeam) & 1@", "true"),
    (PART, "__ballot_sync(kWarpLanes, @seen[u] != 0@)", "seen[u] > 1"),
    # parts
    (DECODING, "part_begin(shape.keys, @part + 1@, parts)", "part"),
    (DECODING, "part_begin(shape.keys, @part@, parts), part_begin", "0"),
    (PART, "start = begin + @warp * kStep@", "0"),
    (PART, "start += @kDecodingWarps * kStep@", "2 * kDecodingWarps * kStep"),
    (PART, "const float weight = @exp2f((part.x - base) * c)@", "1"),
    (PART, "sum += @part.y * weight@", "part.y"),
    (PART, "if (@part.y == -1@)", "false"),
    (PART, "highest = fmaxf(highest, @sums[i * sums_apart].x@)", "sums[0].x"),
    (PART, "seen_yet >> r & 1 ? sum[r] : @-1@", "0"),
    (DECODING, "@all.sees_any ? all.sum : -1@", "all.sum"),
    (DECODING, "T(@all.sees_any ? all.value / all.sum : 0.0f@)", "all.value / all.sum"),
    (DECODING, "+ first + row) * @parts@ + part", "1"),
    # softmax
    (DECODING, "c = @shape.scale * kLog2E@;  // exp", "shape.scale * kLog2E * 1.0001f"),
    (PART, "alpha = @exp2f((highest[r] - base) * c)@", "1.0f"),
    (PART, "sum[r] *= @alpha@", "1.0f"),
    (PART, "O[r][e] *= @alpha@", "1.0f"),
    (PART, "@now == -INFINITY@ ? 0 : now", "false"),
    (PART, "float score = @team_sum(p[u][r])@", "(team_sum(p[u][r]), p[u][r])"),
    (PART, "now = fmaxf(now, @__shfl_xor_sync(kWarpLanes, now, lanes)@)",
     "(__shfl_xor_sync(kWarpLanes, now, lanes), now)"),
    (PART, "O[r][e] += @weight@ * float", "float(__nv_bfloat16(weight))"),
    # heads, columns, keys of a lane
    (DECODING, "head = kv_head * group + @row / shape.queries@", "row % group"),
    (DECODING, "query = @row % shape.queries@;\n    const bool", "0"),
    (DECODING, "there = row < all_rows && @i % D < d@", "i % D + 1 < d"),
    (DECODING, "first = @tile % tiles * R@", "0"),
    (DECODING, "kv_head = @tile / tiles@", "0"),
    (PART, "key = @(j * kTogether) % 8@ + lane", "0"),
    (PART, "p[@j * kTogether / 8@][r]", "0"),
    # a token in one launch: angles, the cache's new rows, the new key, who adds the parts
    (APPEND, "row = token.by_length ? @length - begin@ :", "length"),
    (APPEND, "batch * @token.apart@;", "0"),
    (APPEND, "if (column >= @2 * half@) return", "half"),
    (APPEND, "pair = token.interleaved ? @column / 2@ :", "0"),
    (APPEND, "return @column == first@ ? x0", "true"),
    (APPEND, "has_new = @at.fits && part == parts - 1@", "at.fits"),
    (APPEND, "float(turned(@head@, column, token, at.angles))", "head_of<T>(q, 0, kv_head * group + row)"),
    (APPEND, "column < d && @first == 0@) {", "false"),
    (APPEND, "cached_values[@at.length@ * values.row", "at.begin"),
    (APPEND, "of_warp[kDecodingWarps][r][column] = @float(value)@", "0.0f"),
    (APPEND, "new_key[column] = @float(key)@", "0.0f"),
    (APPEND, "held = at.fits ? @at.length - at.begin@ : 0", "at.length"),
    (APPEND, "cached_keys + @at.begin@ * keys.row, keys.row", "0"),
    (APPEND, "cached_values + @at.begin@ * values.row, values.row", "0"),
    (APPEND, "part_begin(held, @part + 1@, parts)", "part"),
    (APPEND, "float2{@score@, 1}", "0.0f"),
    (APPEND, "score += @__shfl_xor_sync(kWarpLanes, score, lanes)@",
     "(__shfl_xor_sync(kWarpLanes, score, lanes), 0.0f)"),
    (APPEND, "sources = kDecodingWarps + @(has_new ? 1 : 0)@", "0"),
    (APPEND, "place = (row_of_head + row) * @parts@ + part", "1"),
    (APPEND, "atomicInc(arrivals, @most@) ==", "0xffffffffu"),
    (APPEND, "atomicInc(arrivals, most) == @most@", "0u"),
    (APPEND, "all.value / @all.sum@ : NAN", "1.0f"),
    # gradients: masks
    (SHARES, "column < @begins[i / 2]@ ||", "begins[0]"),
    (SHARES, "column >= @ends[i / 2]@", "ends[i / 2] + 1"),
    (GRADIENTS, "shape.causal && @now + shift < mine + 15@", "now + shift < mine"),
    (GRADIENTS, "@now + Walked > queries@ ||", "false"),
    (GRADIENTS, "|| @mine + 16 > keys@ ||", "false"),
    (GRADIENTS, "{@key < keys@ ? queries", "true"),
    (GRADIENTS, "@key + 8 < keys@ ? queries", "true"),
    (GRADIENTS, "keys && @mine <= reach@;", "mine + 16 <= reach"),
    (GRADIENTS, "reach = shape.causal ? @now + Walked - 1 + shift@", "now + shift"),
    (GRADIENTS, "first > shift ? @(first - shift) / Walked@ : 0", "(first - shift) / Walked + 1"),
    (GRADIENTS, "{key < keys ? @queries - now@ : 0", "Walked"),
    # shares and their gradients
    (SHARES, "base(@row.x * c@)", "row.x"),
    (SHARES, "__fdividef(1, @row.y * fast_exp2(__fmaf_rn(row.x, c, -base))@)", "row.y * 1.02f"),
    (SHARES, "dp = @s * (dp - row.delta)@", "s * dp"),
    (SHARES, "s = @fast_exp2(__fmaf_rn(s, c, -row.base)) * row.inverse@", "fast_exp2(__fmaf_rn(s, c, -row.base))"),
    (GRADIENTS, "row[@i % 2@], c);\n      }", "0"),
    (GRADIENTS, "add_values<D>(dV, S, @tile_do@)", "tile_q"),
    (GRADIENTS, "column, @shape.scale@, dq", "1"),
    (GRADIENTS, "dK, @shape.scale@, dk", "1"),
    # tiles, stages and heads
    (GRADIENTS, "head < last_head; stage ^= @1@", "0"),
    (GRADIENTS, "if (@++number == walked@) number", "++number + 1 >= walked"),
    (GRADIENTS, "walked ? @(kv_head + 1) * group@ : 0", "kv_head * group + 1"),
    (GRADIENTS, "head = int(@rest % kv_heads@)", "0"),
    (SHARES, "cp_async<4>(to_delta + threadIdx.x, delta + @first + threadIdx.x@", "threadIdx.x"),
    # dQ: what the warps share, and in which order blocks add
    (SHARES, "swizzled<Walked>(@first + lane / 4 + 8 * half@, n)", "first + lane / 4"),
    (SHARES, "row / 8 + @lane / 8 % 2@)", "0"),
    (SHARES, "+ 16 * i + @lane % 8 + lane / 16 * 8@, row", "lane % 16"),
    (SHARES, "K + swizzled<D>(@k + lane@, column", "k + lane / 2"),
    (SHARES, "lane, column / 8 + @n@));", "0"),
    (SHARES, "live.x : @live.y@) >>", "0u"),
    (GRADIENTS, "tile = int(@tiles - 1 - ticket % tiles@)", "ticket % tiles"),  # the first keys first: for ever
    (GRADIENTS, "at.ticket = @atomicAdd(turns, 1)@", "blockIdx.x"),  # for ever, where blocks come in another order
    (GRADIENTS, "if (@order == 0@) return 0", "true"),
    (GRADIENTS, "atomicAdd(turn, first_sum ? @3@ : 2)", "2"),
    (GRADIENTS, "atomicAdd(turn, @first_sum@ ? 3 : 2)", "true"),
    (GRADIENTS, "kBlockKeys, tiles - 1) - @of.tile@;", "0"),
    (GRADIENTS, "wait_for_turn(turns + 1 + @tile@, order(reach));", "0"),
    (GRADIENTS, "sum = sums + int64_t(@tile@) * (N", "0"),
    (GRADIENTS, "sum += @32 * kKeyWarps@) {", "0"),
    (SHARES, "i < @kWalked<D> * D / 8@; i +=", "kWalked<D> * D / 16"),
    (SHARES, "K + swizzled<D>(@first + lane % 16@, 2 * k", "first + lane % 8"),
    (TILES, "if (row < rows && @chunk * 8 < d@)", "chunk * 8 + 8 < d"),
    (TILES, "if (@row < rows@ && chunk", "row + 1 < rows"),
]
MASKED = [  # behind a mask of the caller's own
    (MASK, "from = mask.data + @batch * mask.batch@", "0"),
    (MASK, "batch * mask.batch + @query * mask.query@", "0"),
    (MASK, "@sees(shape, query, key)@ && from[key]", "key < shape.keys"),
    (MASK, "sees(shape, query, key) && @from[key]@", "true"),
    (MASK, "to[@start / 32@ * shape.queries] = word", "0"),
    (MASK, "to = seen + @batch * words_of(shape)@ * shape.queries", "0"),
    (PLAIN, "seen[(@batch * words_of(shape)@ + key / 32)", "0"),
    (PLAIN, "words_of(shape) + @key / 32@) * shape.queries", "0"),
    (PLAIN, "query, key) >> @(key & 31)@ & 1", "(key & 15)"),
    (PLAIN, "saw = @visible ? 1 : saw@", "1"),
    (PLAIN, "saw = @visible ? 1 : saw@", "visible"),
    (PLAIN, "sees_any = @team_max(saw) > 0@", "saw > 0"),
    (PLAIN_BACK, "bool visible = @sees(shape, seen, batch, query, start + key)@", "sees(shape, query, start + key)"),
    (PLAIN_BACK, "shape.queries && @sees(shape, seen, batch, query, key)@", "sees(shape, query, key)"),
    (PARTS, "batch, @query + 8 * half@, start", "query"),
    (PARTS, "half, @start + 32 * i@)", "start"),
    (PARTS, "words[i / 2][@n / 4@] >>", "0"),
    (PARTS, "words[@i / 2@][n / 4]", "0"),
    (PARTS, ">> (8 * (n % 4) + @int(threadIdx.x) % 4 * 2@ + i % 2)", "0"),
    (PARTS, "% 4 * 2 + @i % 2@) & 1", "0"),
    (FORWARD, "if (@!seen(n, i)@) S[n][i]", "false"),
    (FORWARD, "saw[0] |= @here.any(0)@", "here.any(1)"),
    (FORWARD, "saw[1] |= @here.any(1)@", "0"),
    (PARTS, "bits |= @words[half][i]@", "words[half][0]"),
    (FORWARD, "sees_any = @Masked ? saw[half] != 0 : sees(shape, row, 0)@", "sees(shape, row, 0)"),
    (PARTS, "query = first + @threadIdx.x / 2@, offset", "threadIdx.x % 2"),
    (PARTS, "offset = @threadIdx.x % 2 * 32 % kKeys<D>@", "0"),
    (FORWARD, "next = @next_seen<D>(seen, shape, batch, first, next, end)@", "end"),
    (SHARES, "if (@!seen(n, i)@) P[n][i]", "false"),
    (GRADIENTS, "batch, @start@, first)) return false", "0"),
    (GRADIENTS, "live = live && @SeeingQueries<Walked>(seen, shape, batch, now, mine).any()@", "false"),
    (GRADIENTS, "pass_turn(turns + 1 + @tile@, false);", "0"),
    (PARTS, "(bits & @0xffff@) != 0", "0xff"),
    (PARTS, "seen_word(seen, shape, batch, start + @8 * n@ +", "0"),
    (PARTS, "8 * n + @threadIdx.x % 4 * 2@ + i, key)", "0"),
    (PARTS, "threadIdx.x % 4 * 2 + @i@, key)", "0"),
    (PARTS, ">> @(key & 16)@;", "0"),
    (PARTS, "words[n][@i % 2@] >>", "0"),
    (PARTS, ">> (@int(threadIdx.x) % 32 / 4@ + i / 2 * 8)", "0"),
    (PARTS, "% 32 / 4 + @i / 2 * 8@) & 1", "0"),
    (PARTS, "asks = @threadIdx.x < Words * Rows@", "threadIdx.x < Rows"),
    (PARTS, "query, @key + threadIdx.x % Words * 32@) != 0", "key"),
]
BEGIN = '#include <cstdint>\nextern "C" { int planted; }\n'


def with_faults(folder):
    """A copy of csrc in which fault n is in force while the variable `planted` is n."""
    shutil.copytree(SIMT.parent, folder, dirs_exist_ok=True)
    plant_all((number, folder / "cuda" / name, text, wrong) for number, (name, text, wrong) in
              [*enumerate(FAULTS, 1), *enumerate(MASKED, 1001)])


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(number) -> None: plants that fault in the kernels of backend "simt"; 0 plants none."""
    folder = tmp_path_factory.mktemp("planted")
    with_faults(folder)
    sources = [f"simt/{name}" for name in RUNTIME if "/" not in name] + ["simt_kernels.cpp"]
    together = BEGIN + "".join(f'#include "{folder}/{name}"\n' for name in sources)
    command = ["g++", "-std=c++17", "-ffp-contract=off", "-O1", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-fno-gnu-unique",
               "-w", "-pthread", "-I", folder, "-x", "c++", "-", "-ldl", "-lrt", "-o", f"{folder}/planted.so"]
    done = subprocess.run(list(map(str, command)), input=together, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    library = ctypes.CDLL(f"{folder}/planted.so")
    library.minillama_kernels.restype = ctypes.c_int64
    torch.ops.minillama_simt.use_kernels(library.minillama_kernels())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SIMT_SECONDS", "1")  # of a block that waits for ever
        yield lambda number: setattr(ctypes.c_int.in_dll(library, "planted"), "value", number)
    torch.ops.minillama_simt.use_kernels(0)


def decoding_laws_hold():
    law, inputs = decoding.law_holds, decoding.random_inputs
    law(*inputs(2, 4, 2, 1, 200, 40))
    law(*inputs(1, 4, 2, 1, 150, 8, torch.bfloat16))
    law(*inputs(1, 12, 2, 3, 33, 8))
    for mask in decoding.masks(3, 3, 150):
        law(*inputs(3, 4, 2, 3, 150, 8), True, mask)
    law(*inputs(3, 2, 2, 1, 150, 8), True, next(decoding.masks(3, 1, 150)))
    decoding.test_what_the_mask_hides_and_what_lies_behind_the_cache_is_not_read()
    decoding.test_a_row_that_sees_nothing_is_zeros()
    decoding.test_no_row_and_no_column_too_many_is_read(19, 40, torch.float32)
    decoding.test_what_is_seen_and_not_a_number_is_as_written_out(1, float("nan"))
    decoding.test_what_is_seen_and_not_a_number_is_as_written_out(1, float("-inf"))
    decoding.test_scores_far_from_zero_neither_overflow_nor_vanish(16)


def append_laws_hold():
    append.test_rows_of_any_length_are_what_rope_a_cache_and_attention_make_of_them(torch.float32)
    append.test_groups_are_packed_in_tiles_of_4_or_8_rows_and_one_tile_writes(12, 1)
    append.test_the_first_r_columns_turn_in_either_layout(6, True, torch.float32)
    append.test_padding_at_the_start_of_a_row_is_not_seen_and_has_no_position()
    append.test_the_tokens_own_rows_of_the_table_and_one_length_for_all_give_the_same_bits()
    append.runs_give_the_same_bits_and_leave_the_counters_at_0(("forward", "reverse"))


def gradient_laws_hold():
    law, inputs = gradients.law_holds, gradients.random_inputs
    for T, S, causal in ((70, 140, True), (33, 5, True), (130, 67, False), (70, 70, True)):
        law(inputs(1, 1, 1, T, S, 24, torch.float16), causal)
    law(inputs(2, 4, 2, 37, 40, 16, torch.float16), True)
    with kernels.schedule("reverse"):
        law(inputs(1, 1, 1, 40, 260, 64, torch.bfloat16), True)
    gradients.test_keys_beyond_the_last_have_no_share_however_low_all_scores_are(False, 16)
    gradients.test_a_query_that_sees_nothing_takes_no_gradient_and_gives_none()
    gradients.test_gradients_of_large_scores_keep_the_tolerance_law(30, 80)


def masked_laws_hold():
    for number in (0, 2, 4):
        for T, S in ((70, 130), (66, 70)):
            masked.test_any_mask_keeps_the_law_at_odd_lengths(T, S, number, True)
    masked.test_every_width_and_dtype_keeps_the_law(96, torch.float16)
    for dtype, d in ((torch.float32, 8), (torch.bfloat16, 16)):
        masked.test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(dtype, d)
    masked.test_packed_documents_are_what_each_is_alone(torch.bfloat16, 16)
    masked.test_tiles_that_nobody_sees_are_not_read(16)
    masked.test_of_64_keys_the_last_32_may_be_all_that_is_seen(torch.bfloat16, 16)


LAWS = {DECODING: decoding_laws_hold, PART: decoding_laws_hold, APPEND: append_laws_hold,
        GRADIENTS: gradient_laws_hold, SHARES: gradient_laws_hold, TILES: gradient_laws_hold}


def test_without_a_fault_the_laws_hold(planted):
    planted(0)
    decoding_laws_hold()
    append_laws_hold()
    gradient_laws_hold()
    masked_laws_hold()


@pytest.mark.parametrize("number", range(1001, 1001 + len(MASKED)),
                         ids=[f"{text} -> {wrong}" for _, text, wrong in MASKED])
def test_every_fault_of_a_mask_breaks_a_law(planted, number):
    planted(number)
    try:
        with pytest.raises((AssertionError, RuntimeError)):
            masked_laws_hold()
    finally:
        planted(0)


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{text} -> {wrong}" for _, text, wrong in FAULTS])
def test_every_fault_breaks_a_law(planted, number):
    planted(number)
    try:
        with pytest.raises((AssertionError, RuntimeError)):
            LAWS[FAULTS[number - 1][0]]()
    finally:
        planted(0)
