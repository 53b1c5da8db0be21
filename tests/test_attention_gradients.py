"""The gradients of flash attention on tensor cores, run by the emulator: bf16 and fp16, every odd shape."""

import math
import shutil
import sys

import pytest
import torch
from test_attention_kernel import law_holds, random_inputs, with_gradients

from minillama import kernels
from minillama.attention import attention

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 65), (5, 2), (33, 5), (16, 16), (63, 66), (70, 70), (65, 140),
                                    (130, 67), (40, 300)])
def test_odd_lengths_keep_the_tolerance_law(T, S, causal):
    law_holds(random_inputs(1, 2, 1, T, S, 16, torch.bfloat16), causal)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("d", [8, 32, 48, 64, 80, 96, 112, 128, 129, 136, 192, 200, 256])
def test_every_width_and_dtype_keeps_the_tolerance_law(d, dtype):
    """Two tiles of keys and of queries, cut by the diagonal and by both ends."""
    law_holds(random_inputs(1, 1, 1, 35, 66, d, dtype), True)


@pytest.mark.parametrize(("H", "K"), [(2, 2), (4, 2), (3, 1)])
def test_grouped_heads_keep_the_tolerance_law(H, K):
    law_holds(random_inputs(2, H, K, 37, 40, 24, torch.float16), True)


def test_a_query_that_sees_nothing_takes_no_gradient_and_gives_none():
    """Whatever its numbers are: of 70 queries over 5 keys a whole tile and more see none."""
    q, k, v = random_inputs(1, 1, 1, 70, 5, 16, torch.bfloat16)
    direction = torch.randn(1, 1, 70, 16).bfloat16()
    dq, dk, dv = with_gradients(kernels.flash_attention, (q, k, v), direction)[1:]
    assert (dq[:, :, :65] == 0).all() and (dq[:, :, 66:] != 0).any()
    with torch.no_grad():
        q[:, :, :65] = 1e30
        direction[:, :, :65] = 1e30
    again = with_gradients(kernels.flash_attention, (q, k, v), direction)
    assert all(torch.equal(a, b) for a, b in zip(again[1:], (dq, dk, dv), strict=True))


@pytest.mark.parametrize("d", [16, 200])
@pytest.mark.parametrize("causal", [True, False])
def test_keys_beyond_the_last_have_no_share_however_low_all_scores_are(causal, d):
    """They are zeros in a tile, whose score, 0, is far above all others: exp(0 - maximum) would be infinite."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, 33, 70, d, torch.bfloat16))
    q, k = 30 + q, k - 30
    law_holds([x.requires_grad_() for x in (q, k, v)], causal)


@pytest.mark.parametrize("d", [80, 200])
@pytest.mark.parametrize("factor", [30, 1e3, 1e4])
def test_gradients_of_large_scores_keep_the_tolerance_law(factor, d):
    """A share is 1 where one key has all the weight: the roundings of the forward pass and of this one cancel."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, 33, 70, d, torch.bfloat16))
    law_holds([(q * factor).requires_grad_(), k.requires_grad_(), v.requires_grad_()], True)


@pytest.mark.parametrize("d", [16, 200])
def test_the_gradient_of_the_log_of_the_sums_counts(d):
    q, k, v = random_inputs(1, 2, 1, 6, 70, d, torch.bfloat16)
    lse = torch.ops.minillama_simt.flash_attention(q, k, v, False)[1]
    direction = torch.randn(1, 2, 6)
    wanted = (q.double() @ k.double().mT / math.sqrt(d)).logsumexp(-1)
    found = torch.autograd.grad(lse, [q, k], direction)
    for o, w in zip(found, torch.autograd.grad(wanted, [q, k], direction.double()), strict=True):
        assert (o.double() - w.double()).abs().max() <= 2 * torch.finfo(o.dtype).eps * w.double().abs().max()


def test_fifty_runs_give_the_same_bits_in_any_order_of_threads():
    inputs, direction = random_inputs(1, 2, 1, 34, 140, 16, torch.bfloat16), torch.ones(1, 2, 34, 16)
    first = with_gradients(kernels.flash_attention, inputs, direction)
    for order in ("reverse", *(f"shuffle:{seed}" for seed in range(48))):
        with kernels.schedule(order):
            again = with_gradients(kernels.flash_attention, inputs, direction)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


PROFILED = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                                 reason="the profiler is compiled on the spot by g++, on Linux")]


@pytest.mark.parametrize(("d", "causal"), [pytest.param(d, causal, marks=PROFILED) for d, causal in (
    (32, True), (64, False), (64, True), (96, False), (128, True))])
def test_all_products_are_on_tensor_cores_no_bank_waits_and_bytes_are_those_of_the_tiles(d, causal):
    T, H, walked = 192, 2, 32 if d <= 96 else 16
    q, k, v = (x.bfloat16().requires_grad_() for x in random_inputs(1, H, 1, T, T, d, torch.float32))
    out = kernels.flash_attention(q, k, v, causal)
    with kernels.profile() as p:
        torch.autograd.grad(out, [q, k, v], torch.randn_like(out))
    keys = ([0, 128], [128, 192])  # of the blocks
    tiles = [[start for start in range(0, T, walked) if not causal or start + walked > first] for first, _ in keys]
    last_seen = {start: start + walked - 1 if causal else T - 1 for start in tiles[0]}
    live = [[16 * len(range(first, min(end, last_seen[start] + 1), 16)) for start in starts]  # keys, by whole warps
            for (first, end), starts in zip(keys, tiles, strict=True)]
    products = sum(4 * n + -(-n // 32) * 32 for n in sum(live, []))  # dQ by 32 keys
    assert p.events("mma_") == H * products // 16 * (walked // 8) * (d // 16)
    assert causal or products == 5 * T * T // walked  # five products, and no more
    assert p.shared_load.conflicts == p.shared_store.conflicts == 0 and p.findings == []
    seen = H * walked * sum(map(len, tiles))  # queries that blocks copy
    sums = 4 * d * H * walked * len(tiles[1])  # bytes of dQ that the second block leaves to the first
    assert 32 * p.total("global", "load", "flash_gradients").sectors == 2 * d * 2 * T + (4 * d + 12) * seen + sums
    stored = p.total("global", "store", "flash_")
    assert stored.compulsory == stored.bytes == 2 * d * (T * H + 2 * T) + 4 * T * H + sums  # dq, dk, dv, and delta
    assert stored.sector_efficiency == 1


@pytest.mark.parametrize("d", [pytest.param(d, marks=PROFILED) for d in (40, 128, 192)])
def test_without_queries_keys_take_no_gradient_and_no_copy_lands_on_it(d):
    """A copy that nobody waits for may land after zeros were written where it goes."""
    q, k, v = (x.half().requires_grad_() for x in random_inputs(1, 2, 1, 0, 70, d, torch.float32))
    out = kernels.flash_attention(q, k, v)
    with kernels.profile() as p:
        dk, dv = torch.autograd.grad(out, [k, v], torch.ones_like(out))
    assert p.findings == [] and not dk.any() and not dv.any()


def test_a_model_of_16_bits_learns_what_plain_attention_teaches_it():
    """Several layers of a loss: the direction of all gradients together is that of float64."""
    inputs = random_inputs(1, 4, 2, 40, 40, 16, torch.bfloat16)
    ours = torch.autograd.grad(kernels.flash_attention(*inputs).float().square().sum(), inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(attention(*wide).square().sum(), wide)
    for o, w in zip(ours, wanted, strict=True):
        assert torch.nn.functional.cosine_similarity(o.double().flatten(), w.flatten(), 0) > 1 - 1e-4
