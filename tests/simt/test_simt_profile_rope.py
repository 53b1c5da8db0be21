"""RoPE from the naive version to the limit: counters move as the versions' headers say, and numbers stay right."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from minillama import kernels

ROAD = Path(__file__).resolve().parent / "kernels" / "rope_road.cu"
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                reason="the profiler is compiled on the spot by g++, on Linux")


@pytest.fixture(scope="module")
def source():
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


def run(source, dtype, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse=False, profiled=True):
    torch.manual_seed(0)
    q, k = (torch.randn(tokens, n, width).to(dtype) for n in (heads, kv_heads))
    angles = torch.rand(tokens, rotary // 2, dtype=torch.float64) * 6.28
    table = torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).float().contiguous()
    yq, yk = torch.full_like(q, torch.nan), torch.full_like(k, torch.nan)
    function = source.bf16 if dtype == torch.bfloat16 else source.fp32
    arguments = (q, k, table, yq, yk, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse)
    p = None
    if profiled:
        with kernels.profile(source) as p:
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


X, ROW = 2 * 40 * 128 * 2, 512  # bytes of a token: 32 + 8 heads of width 128 in bf16, read and written; its angles
ROAD_OF = {  # (version, interleaved): bytes that a token issues for x and y and for the table, requests for x: rope.cuh
    (1, True): (2 * X, 40 * ROW, 160), (1, False): (X, 40 * ROW, 160), (2, True): (X, 40 * ROW, 80),
    (2, False): (X, 40 * ROW, 80), (3, True): (X, 40 * ROW, 20), (3, False): (X, 40 * ROW // 2, 20),
    (4, True): (X, ROW, 20), (4, False): (X, ROW, 20),
}


@pytest.mark.long
@pytest.mark.parametrize(("version", "interleaved"), ROAD_OF)
def test_every_version_issues_the_bytes_that_its_header_predicts(source, version, interleaved):
    """Within 2 %, all but the table's requests exactly. Versions 1 to 3 launch twice: the table is compulsory twice."""
    tokens = 6
    p = run(source, torch.bfloat16, tokens, 32, 8, 128, 128, version, interleaved)
    x, table, requests = ROAD_OF[version, interleaved]
    assert 32 * (p.global_load.sectors + p.global_store.sectors) == pytest.approx(tokens * (x + table), rel=0.02)
    launches = 1 if version == 4 else 2
    assert p.global_load.compulsory + p.global_store.compulsory == tokens * (X + launches * ROW)
    assert p.global_store.requests == tokens * requests
    assert len(p.kernels) == 1 and sum(one["launches"] for one in p.kernels.values()) == launches
    assert p.total("shared").requests == p.barriers == 0


@pytest.mark.long
@pytest.mark.parametrize("interleaved", [True, False])
def test_version_4_moves_each_byte_once(source, interleaved):
    p = run(source, torch.bfloat16, 6, 32, 8, 128, 128, 4, interleaved)
    assert issued_over_compulsory(p) == 1.0
    assert p.global_load.sector_efficiency == p.global_store.sector_efficiency == 1.0
    assert p.total("shared").conflicts == 0
    assert p.global_store.sectors_per_request == 16  # 512 bytes


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "width"), [(1, 1, 1, 16), (5, 3, 1, 80), (3, 5, 1, 96)])
def test_versions_1_to_3_are_right(source, dtype, interleaved, tokens, heads, kv_heads, width):
    for version in (1, 2, 3):
        for order in ("forward", "shuffle:3"):
            with kernels.schedule(order):
                run(source, dtype, tokens, heads, kv_heads, width, width, version, interleaved,
                    profiled=order == "forward")


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "width", "rotary"), [
    (1, 1, 1, 16, 16), (5, 3, 1, 80, 80), (4, 2, 2, 64, 32), (3, 5, 1, 96, 48), (2, 2, 1, 128, 128), (9, 1, 3, 48, 16)])
def test_version_4_is_right_for_odd_shapes_partial_rotation_and_backward(source, dtype, interleaved, tokens, heads,
                                                                         kv_heads, width, rotary):
    for order in ("forward", "shuffle:3"):
        with kernels.schedule(order):
            for inverse in (False, True):
                run(source, dtype, tokens, heads, kv_heads, width, rotary, 4, interleaved, inverse, order == "forward")


@pytest.mark.long
@pytest.mark.parametrize("interleaved", [True, False])
def test_rows_that_do_not_begin_at_16_bytes_go_element_by_element(source, interleaved):
    for width, rotary, kernel in ((20, 20, "rope_scalar"), (24, 10, "rope_scalar"), (48, 16, "rope_v4")):
        p = run(source, torch.bfloat16, 5, 3, 1, width, rotary, 4, interleaved)
        assert [kernel in name for name in p.kernels] == [True]


@pytest.mark.long
def test_a_version_refuses_what_it_cannot_hold(source):
    q, table = torch.zeros(1, 1, 20).bfloat16(), torch.zeros(1, 10, 2)
    for version in (0, 3, 5):
        with pytest.raises(RuntimeError, match="want half a multiple of their 1, 2 and 8"):
            source.bf16(q, q[:, :0], table, q.clone(), q[:, :0].clone(), 1, 1, 0, 20, 20, version, True, False)


@pytest.mark.long
@pytest.mark.parametrize("half", [8, 7])
def test_a_position_without_a_row_makes_nan_and_reads_nothing(source, half):
    """A GPU's kernel cannot raise an error, and the host cannot look without waiting for it."""
    tokens, rows = 5, 3
    q, y = torch.randn(2, tokens, 16), torch.zeros(2, tokens, 16)
    angles = torch.rand(rows, half, dtype=torch.float64)
    table = torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).float().contiguous()
    positions = torch.tensor([[0, 3, 2, -1, 1], [2**40, 2, -2**62, 1, 0]])
    with kernels.profile(source) as p:
        source.placed(q, table, positions, y, tokens, rows, half == 8)
    assert p.findings == []  # nothing out of bounds
    there = (positions >= 0) & (positions < rows)
    assert y[~there][:, :2 * half].isnan().all()
    wanted = rotated(q[there][:, None], angles[positions[there]], 2 * half, True)[:, 0]
    assert (y[there].double() - wanted).abs().max() < 1e-6


@pytest.mark.long
@pytest.mark.parametrize(("old", "new"), [
    ("s[j] = sign * s0", "s[j] = s0"),  # backward turns forward
    ("of_q ? head : head - q.heads", "head"),  # k's heads counted from q's first
    ("(chunk * Pairs + j) / 2 - start", "(lane * Pairs + j) / 2 - start"),  # another head's lane is asked
    ("2 * half + i % tail * V", "i % tail * V"),  # the rest of the columns over the turned ones
    ("head + n * teams < heads", "head + n * teams <= heads"),  # a head too many is read: the profiler stops it
])
def test_a_fault_in_version_4_shows(tmp_path, old, new):
    """One place of the kernel is changed, and its tests fail: by the numbers, or stopped for what it touches."""
    csrc = kernels.source_folder()
    (tmp_path / "cuda").mkdir()
    for name in ("launch.h", "cuda/kernels.h", "cuda/rope.cuh", "cuda/rope_vectors.cuh"):
        text = (csrc / name).read_text(encoding="utf-8")
        if name == "cuda/rope_vectors.cuh":
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / ROAD.name).write_text(ROAD.read_text(encoding="utf-8"), encoding="utf-8")
    faulty = kernels.CudaSource(tmp_path / ROAD.name)
    with pytest.raises((AssertionError, RuntimeError)):
        run(faulty, torch.float32, 4, 6, 3, 64, 32, 4, False, inverse=True)  # 9 heads: one more than 8 teams
