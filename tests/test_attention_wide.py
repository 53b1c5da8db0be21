"""Flash attention in heads of 129 to 256 columns and its gradients, on tensor cores, aligned or not, emulated."""

import math
import shutil
import sys

import pytest
import torch
from mutants import Mutant
from test_attention_decoding import masks
from test_attention_kernel import random_inputs, with_gradients
from test_attention_masks import law_holds
from test_kernels_edges import off

from minillama import kernels

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
PROFILED = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                                 reason="the profiler is compiled on the spot by g++, on Linux")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [129, 130, 136, 160, 191, 192, 193, 200, 208, 224, 255, 256])
def test_every_width_keeps_the_arithmetics_bound(d, dtype):
    law_holds(random_inputs(1, 1, 1, 18, 35, d, dtype), True, None)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 33), (5, 2), (17, 17), (63, 66), (65, 64), (67, 130), (130, 67)])
def test_odd_lengths_and_grouped_heads(T, S, causal):
    law_holds(random_inputs(1, 2, 1, T, S, 200, torch.bfloat16), causal, None)
    law_holds(random_inputs(2, 4, 2, T, S, 131, torch.float16, seed=1), causal, None)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("d", [136, 255])
def test_any_mask_is_known(number, d):
    """The last: a window of 33 keys, which begins and ends within a tile."""
    place = torch.arange(130)
    window = (place > place[60:, None] - 33)[None]
    law_holds(random_inputs(3, 2, 1, 70, 130, d, torch.bfloat16), True, [*masks(3, 70, 130), window][number])


@pytest.mark.parametrize("d", [136, 192, 256])
def test_memory_that_is_not_aligned_gives_the_same_bits(d):
    inputs, direction = random_inputs(1, 2, 1, 19, 67, d, torch.bfloat16), torch.ones(1, 2, 19, d)
    once = with_gradients(kernels.flash_attention, inputs, direction)
    for number in range(3):
        moved = [off(x.detach()).requires_grad_() if i == number else x for i, x in enumerate(inputs)]
        again = with_gradients(kernels.flash_attention, moved, direction)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_log_of_the_sums_is_the_formulas():
    q, k, v = (x.detach() for x in random_inputs(1, 2, 1, 40, 70, 200, torch.bfloat16))
    lse = torch.ops.minillama_simt.flash_attention(q, k, v, False)[1]
    scores = q.double() @ k.double().mT / math.sqrt(200)
    terms = float((q.double().abs() @ k.double().abs().mT).max()) / math.sqrt(200)
    bound = 200 * torch.finfo(torch.float32).eps * terms
    assert (lse.double() - scores.logsumexp(-1)).abs().max() <= bound


def test_any_order_of_threads_gives_the_same_bits():
    inputs, direction = random_inputs(1, 2, 1, 66, 70, 200, torch.bfloat16), torch.ones(1, 2, 66, 200)
    first = with_gradients(kernels.flash_attention, inputs, direction)
    for order in ("reverse", *(f"shuffle:{seed}" for seed in range(8))):
        with kernels.schedule(order):
            again = with_gradients(kernels.flash_attention, inputs, direction)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("d", "causal"), [pytest.param(d, causal, marks=PROFILED) for d, causal in (
    (192, True), (256, False), (136, False), (208, True), (131, True))])
def test_the_forward_pass_moves_what_its_header_says_and_no_bank_waits(d, causal):
    """All products on tensor cores; q, O, LSE, maxima and sums of rows once; k and v by the tiles of 64 queries."""
    T, H, D = 128, 2, 192 if d <= 192 else 256
    q, k, v = (torch.randn(1, heads, T, d).bfloat16() for heads in (H, 1, 1))
    with kernels.profile() as p:
        kernels.flash_attention(q, k, v, causal=causal)
    tiles = [min(T, first + 64) // 32 if causal else T // 32 for first in range(0, T, 64)]  # of keys, in a row
    seen = sum(tiles) * 32 * H  # keys that blocks copy
    assert p.global_load.bytes == 2 * d * (T * H + 2 * seen)
    assert p.global_store.compulsory == p.global_store.bytes == 2 * d * T * H + 12 * T * H
    if d % 16 == 0:  # whole sectors
        assert p.global_load.sector_efficiency == 1
    assert p.findings == [] and p.shared_store.conflicts == p.shared_load.conflicts == 0
    # a warp's 16 queries meet a tile of keys that is not wholly in their future
    met = 4 * sum(tiles) - causal * 2 * len(tiles)
    assert p.events("mma_") == met * H * 2 * 4 * (D // 16)


@pytest.mark.parametrize(("d", "causal"), [pytest.param(d, causal, marks=PROFILED) for d, causal in (
    (192, True), (256, False), (136, False), (208, True), (131, True))])
def test_the_gradients_move_what_their_header_says_and_no_bank_waits(d, causal):
    """All products on tensor cores, seven of them; k and v by the tiles of 64 queries, q and dO by those of 64 keys."""
    T, H, D = 128, 2, 192 if d <= 192 else 256
    q, k, v = (torch.randn(1, heads, T, d).bfloat16().requires_grad_() for heads in (H, 1, 1))
    out = kernels.flash_attention(q, k, v, causal=causal)
    with kernels.profile() as p:
        torch.autograd.grad(out, [q, k, v], torch.randn_like(out))
    blocks = range(0, T, 64)
    keys = H * sum(first + 64 if causal else T for first in blocks)  # that the blocks of dq copy
    queries = H * sum(T - first if causal else T for first in blocks)  # those of dk and dv
    lanes = 8 * 32 * 2 * 12 * H * len(blocks)  # each takes the 12 bytes of its two rows
    assert p.total("global", "load", "flash_wide_dq").bytes == 2 * d * 2 * (T * H + keys) + lanes
    assert p.total("global", "load", "flash_wide_dkv").bytes == 2 * d * 2 * (T + queries) + 12 * queries
    for kernel, rows in (("flash_wide_dq", T * H), ("flash_wide_dkv", 2 * T)):
        stored = p.total("global", "store", kernel)
        assert stored.compulsory == stored.bytes == 2 * d * rows  # dq; dk and dv
        assert d % 16 or stored.sector_efficiency == 1
    assert p.findings == [] and p.shared_store.conflicts == p.shared_load.conflicts == 0
    # 16 queries meet 16 keys, a square that is not wholly in the future: of D columns three products, and four
    squares = H * sum(first // 16 + 1 if causal else T // 16 for first in range(0, T, 16))
    of_keys = 2 * D // 16  # mma of a product
    assert p.events("mma_", "flash_wide_dq") == 3 * of_keys * squares
    assert p.events("mma_", "flash_wide_dkv") == 4 * of_keys * squares


WIDE, WIDE_BACK = "flash_wide", "flash_wide_backward"
FAULTS = [  # that test_kernels_planted.py plants: a file, its text with @what is right@, what is wrong
    (WIDE, "add_scores<W>(S, @tile_q[1]@, pieces[1])", "tile_q[0]"),
    (WIDE, "from + @half * W@, stride", "0"),
    (WIDE, "half_of_columns<W>(O, @1@)", "0"),
    (WIDE, "x = data[@(first + row) * stride + column@]", "(first + row) * width + column"),
    (WIDE, "if (@seen_by(shape, mine) < start + Keys@)", "false"),
    (WIDE, "seen_by(shape, @mine + 15@) > start;", "mine"),
    (WIDE, "1 / @sum@ : 0", "(sum * 1.01f)"),
    (WIDE, "kv_head = @unsigned(head) / unsigned(shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (WIDE_BACK, "kv_head = @unsigned(head) / unsigned(shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (WIDE_BACK, "S[n][0] += @s.x@", "0"),
    (WIDE_BACK, "dP[n][3] += @dp.w@", "0"),
    (WIDE_BACK, "s = parts[@warp ^ 1@][2 * n]", "warp"),
    (WIDE_BACK, "to + @half * Rows * W@, data", "0"),
    (WIDE_BACK, "tile_k = tiles + (stage * 4 + @side@) * Side", "0"),
    (WIDE_BACK, "dQ, @shape.scale@, dq", "1"),
    (WIDE_BACK, "dK, @shape.scale@, dk", "1"),
    (WIDE_BACK, "add_values<W>(dV, S, @tile_do@)", "tile_q"),
    (WIDE_BACK, "seen_by(shape, @mine + 15@) > start;", "mine"),
    (WIDE_BACK, "words[@i / 2@] >>", "0"),
]
MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "k_BKSd, v_BKSd, causal, mask_BTS)[0]", "k_BKSd, v_BKSd, causal, None)[0]",
           lambda: test_any_mask_is_known(4, 136)),
]
