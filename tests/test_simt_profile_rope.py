"""RoPE from the naive version to the limit: counters move as the versions' headers say, and numbers stay right."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from minillama import kernels

ROAD = Path(__file__).resolve().parent / "simt" / "kernels" / "rope_road.cu"
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                reason="the profiler is compiled on the spot by g++, on Linux")


@pytest.fixture(scope="module")
def road():
    return kernels.CudaSource(ROAD)


def rotated(x, angles, rotary, interleaved):
    """In float64: the first `rotary` columns of x (T, H, d) turned by angles (T, rotary / 2)."""
    y = x.double().clone()
    first, second = ((slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved
                     else (slice(0, rotary // 2), slice(rotary // 2, rotary)))
    c, s = angles.cos().float().double()[:, None], angles.sin().float().double()[:, None]
    x0, x1 = x.double()[..., first], x.double()[..., second]
    y[..., first], y[..., second] = x0 * c - x1 * s, x1 * c + x0 * s
    return y


def run(road, dtype, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse=False, profiled=True):
    torch.manual_seed(0)
    q, k = (torch.randn(tokens, n, width).to(dtype) for n in (heads, kv_heads))
    angles = torch.rand(tokens, rotary // 2, dtype=torch.float64) * 6.28
    yq, yk = torch.full_like(q, torch.nan), torch.full_like(k, torch.nan)
    function = road.bf16 if dtype == torch.bfloat16 else road.fp32
    arguments = (q, k, angles.cos().float(), angles.sin().float(), yq, yk, tokens, heads, kv_heads, width, rotary,
                 version, interleaved, inverse)
    p = None
    if profiled:
        with kernels.profile(road) as p:
            function(*arguments)
        assert p.findings == []
    else:
        function(*arguments)
    for x, y in ((q, yq), (k, yk)):
        wanted = rotated(x, -angles if inverse else angles, rotary, interleaved)
        if dtype == torch.float32:
            assert (y.double() - wanted).abs().max() < 1e-6
        else:  # one unit in the last place of the rounded result: bits as integers are in order
            ulps = (y.view(torch.int16).int() - wanted.to(dtype).view(torch.int16).int()).abs()
            assert ulps.max() <= 1
    return p


def issued_over_compulsory(p):
    sectors = p.global_load.sectors + p.global_store.sectors
    return 32 * sectors / (p.global_load.compulsory + p.global_store.compulsory)


@pytest.mark.long
@pytest.mark.parametrize("interleaved", [True, False])
def test_version_4_moves_each_byte_once(road, interleaved):
    """32 + 8 heads of width 128 in bf16: x and y of every token 2 x 10240 bytes, its row of the table 512."""
    tokens = 6
    p = run(road, torch.bfloat16, tokens, 32, 8, 128, 128, 4, interleaved)
    assert p.global_load.compulsory + p.global_store.compulsory == tokens * (2 * 40 * 128 * 2 + 512)
    assert issued_over_compulsory(p) == 1.0
    assert p.global_load.sector_efficiency == p.global_store.sector_efficiency == 1.0
    assert p.total("shared").requests == 0 and len(p.kernels) == 1  # no bank at all, one launch for q and k
    assert p.global_store.sectors_per_request == 16  # 512 bytes


@pytest.mark.long
def test_version_1_fetches_the_table_for_every_head_and_strides(road):
    """Interleaved, both loads and both stores of a pair touch the same sectors; the table comes once for every head.
    q and k are two launches, so the table is compulsory twice."""
    p = run(road, torch.bfloat16, 6, 32, 8, 128, 128, 1, True)
    x = 2 * 40 * 128 * 2
    assert 32 * (p.global_load.sectors + p.global_store.sectors) == 6 * (2 * x + 40 * 512)
    assert issued_over_compulsory(p) == pytest.approx((2 * x + 40 * 512) / (x + 2 * 512), abs=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "width", "rotary"), [
    (1, 1, 1, 16, 16), (5, 3, 1, 80, 80), (4, 2, 2, 64, 32), (3, 5, 1, 96, 48), (2, 2, 1, 128, 128), (9, 1, 3, 48, 16)])
def test_version_4_is_right_for_odd_shapes_partial_rotation_and_backward(road, dtype, interleaved, tokens, heads,
                                                                         kv_heads, width, rotary):
    for order in ("forward", "shuffle:3"):
        with kernels.schedule(order):
            for inverse in (False, True):
                run(road, dtype, tokens, heads, kv_heads, width, rotary, 4, interleaved, inverse, order == "forward")


@pytest.mark.long
def test_rows_that_are_no_multiple_of_16_bytes_are_refused(road):
    q, table = torch.zeros(1, 1, 20).bfloat16(), torch.zeros(1, 10)
    with pytest.raises(RuntimeError, match="do not begin at multiples of 16 bytes"):
        road.bf16(q, q[:, :0], table, table, q.clone(), q[:, :0].clone(), 1, 1, 0, 20, 20, 4, True, False)
