"""Queries and keys turned by one launch, on every backend: within the bound of float64, in place, into a cache."""

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.rope import apply_rope_qk, rope_frequencies, rope_rotations

BACKENDS = [name for name in ("cpu", "simt") if name in kernels.built_backends()]
pytestmark = pytest.mark.skipif(not BACKENDS, reason=f"the kernels are not built: {kernels.BUILD}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# B, T, H, K, d, r: odd ones first, then vectors of 16 bytes: whole heads, parts of them, more than a warp holds
SHAPES = [(1, 1, 1, 1, 2, 2), (2, 7, 3, 1, 6, 6), (1, 5, 2, 2, 46, 46), (2, 3, 5, 1, 10, 6), (1, 4, 3, 3, 7, 0),
          (1, 1, 1, 1, 16, 16), (3, 5, 3, 1, 80, 80), (1, 7, 5, 2, 96, 48), (2, 31, 3, 1, 64, 32),
          (1, 3, 2, 1, 256, 256), (1, 2, 1, 1, 520, 520), (1, 67, 32, 8, 128, 128)]


OUT = torch.zeros(2, 5, 3, 8), torch.zeros(2, 5, 1, 8)


def inputs(shape, dtype=torch.float32, rows=None, seed=0):
    """q, k and rotations (rows, r/2) at positions far from 0."""
    B, T, H, K, d, r = shape
    torch.manual_seed(seed)
    rotations = rope_rotations(torch.randint(0, 100_000, (rows or T,)), rope_frequencies(r))
    return torch.randn(B, T, H, d).to(dtype), torch.randn(B, T, K, d).to(dtype), rotations


def exact(x_BTHd, angles, interleaved=True, inverse=False):
    """In float64, by the formula; angles: (T, r/2) or (B, T, r/2)."""
    r, y, x = 2 * angles.shape[-1], x_BTHd.double().clone(), x_BTHd.double()
    first, second = ((slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r)))
    c, s = angles.real.double().unsqueeze(-2), angles.imag.double().unsqueeze(-2) * (-1 if inverse else 1)
    y[..., first] = x[..., first] * c - x[..., second] * s
    y[..., second] = x[..., second] * c + x[..., first] * s
    return y


def close(ours, wanted):
    """fp32 within 1e-6: three roundings of numbers below 8, of 2^-22 at most together. The narrow ones within one unit
    in the last place of the rounded float64 result: their bits as integers are in order, zeros counted as one."""
    assert ours.shape == wanted.shape
    if ours.dtype == torch.float32:
        assert ours.numel() == 0 or (ours.double() - wanted).abs().max() < 1e-6
        return
    bits = [x.view(torch.int16).int() for x in (ours.contiguous(), wanted.to(ours.dtype))]
    ordered = [torch.where(b < 0, -(b & 0x7FFF), b) for b in bits]
    assert (ordered[0] - ordered[1]).abs().le(1).logical_or((ours.double() - wanted).abs() < 1e-7).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_call_turns_both_within_the_bound_of_float64(shape, dtype, backend):
    for interleaved in (True, False):
        q, k, rotations = inputs(shape, dtype)
        for ours, x in zip(kernels.fused_rope_qk(q, k, rotations, interleaved=interleaved, backend=backend), (q, k),
                           strict=True):
            assert ours.dtype == dtype and ours.is_contiguous()
            close(ours, exact(x, rotations, interleaved))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 3, 1, 6, 4), (2, 5, 2, 1, 32, 16)], ids=str)
def test_positions_or_an_offset_choose_the_rows_of_the_table(shape, backend):
    B, T = shape[:2]
    q, k, table = inputs(shape, rows=50)
    shared, own = torch.randint(50, (T,)), torch.randint(50, (B, T))
    for arguments, angles in (({}, table[:T]), ({"offset": 50 - T}, table[50 - T:]),
                              ({"positions": shared}, table[shared]), ({"positions": own}, table[own]),
                              ({"positions": own.T.contiguous().T}, table[own])):
        for ours, x in zip(kernels.fused_rope_qk(q, k, table, **arguments, backend=backend), (q, k), strict=True):
            close(ours, exact(x, angles))
    for ours, x in zip(kernels.fused_rope_qk(q, k, table[own], backend=backend), (q, k), strict=True):
        close(ours, exact(x, table[own]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_q_and_k_may_lie_in_memory_as_they_like(dtype, backend):
    """Heads before tokens; slices of one product; one element off; the same head for all; columns apart."""
    q, k, rotations = inputs((2, 5, 4, 2, 32, 32), dtype)
    joint = torch.cat([q, k], dim=2)
    off = torch.randn(q.numel() + 1).to(dtype)[1:].view(q.shape)
    odd_rows = torch.randn(2, 5, 2, 33).to(dtype)[..., 1:]
    for a, b in ((q.transpose(1, 2).contiguous().transpose(1, 2), k), (joint[:, :, :4], joint[:, :, 4:]), (off, k),
                 (q, odd_rows), (q[:, :, :1].expand(q.shape), k), (q, k.mT.contiguous().mT)):
        for interleaved in (True, False):
            turned = kernels.fused_rope_qk(a, b, rotations, interleaved=interleaved, backend=backend)
            for ours, x in zip(turned, (a, b), strict=True):
                close(ours, exact(x, rotations, interleaved))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 3, 1, 10, 6), (2, 5, 2, 1, 64, 32), (1, 3, 2, 1, 64, 64)], ids=str)
def test_in_place_writes_q_and_k_and_nothing_else(shape, dtype, backend):
    B, T, H, K, d, _ = shape
    for interleaved in (True, False):
        q, k, rotations = inputs(shape, dtype)
        memory = torch.full((B, T, H + K + 1, d), 7.0, dtype=dtype)
        a, b = memory[:, :, :H], memory[:, :, H:H + K]
        a.copy_(q), b.copy_(k)
        version = memory._version
        out = kernels.fused_rope_qk(a, b, rotations, interleaved=interleaved, in_place=True, backend=backend)
        assert out[0] is a and out[1] is b and memory._version > version
        close(a, exact(q, rotations, interleaved))
        close(b, exact(k, rotations, interleaved))
        assert (memory[:, :, H + K:] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 3, 1, 10, 6), (2, 5, 4, 2, 64, 64)], ids=str)
def test_k_goes_straight_into_the_rows_of_a_cache(shape, backend):
    B, T, _, K, d, _ = shape
    q, k, rotations = inputs(shape, torch.bfloat16)
    cache_BKSd = torch.full((B, K, T + 9, d), 7.0, dtype=torch.bfloat16)
    rows = cache_BKSd[:, :, 4:4 + T].transpose(1, 2)
    version = cache_BKSd._version
    turned, keys = kernels.fused_rope_qk(q, k, rotations, out=(torch.empty_like(q), rows), backend=backend)
    assert keys is rows and cache_BKSd._version > version
    close(turned, exact(q, rotations))
    close(keys, exact(k, rotations))
    assert (cache_BKSd[:, :, :4] == 7).all() and (cache_BKSd[:, :, 4 + T:] == 7).all()
    close(kernels.fused_rope_qk(q, k, rotations, backend=backend)[1], exact(k, rotations))  # k itself was left alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interleaved", [True, False])
def test_the_gradient_is_the_turn_back(backend, interleaved):
    """dx = R^T dy, for q and for k, also where only one of them is asked for; and R^T R = 1."""
    q, k, rotations = inputs((2, 5, 3, 1, 16, 8))
    q.requires_grad_(), k.requires_grad_()
    positions = torch.randint(5, (2, 5))
    out = kernels.fused_rope_qk(q, k, rotations, positions, interleaved=interleaved, backend=backend)
    upstream = [torch.randn_like(x) for x in out]
    for dx, dy in zip(torch.autograd.grad(out, (q, k), upstream, retain_graph=True), upstream, strict=True):
        close(dx, exact(dy, rotations[positions], interleaved, inverse=True))
    (dk,) = torch.autograd.grad(out[1], k, out[1])
    torch.testing.assert_close(dk, k.detach(), rtol=0, atol=4e-6)  # two turns of three roundings, of numbers below 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_stays_so_and_infinities_behave(backend):
    for dtype in DTYPES:
        q, k, rotations = inputs((1, 3, 2, 1, 16, 16), dtype)
        q[0, 0, 0, 0], q[0, 1, 1, 5], k[0, 2, 0, 3] = torch.nan, torch.inf, -torch.inf
        angles = torch.view_as_real(rotations).clone()
        rounded_to_minus_0 = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # by a naive sum
        angles[2, 4, 0], angles[1, 6, 1] = rounded_to_minus_0, rounded_to_minus_0
        angles = torch.view_as_complex(angles)
        for ours, x in zip(kernels.fused_rope_qk(q, k, angles, backend=backend), (q, k), strict=True):
            wanted = exact(x, angles).to(dtype)
            assert torch.equal(ours.isnan(), wanted.isnan()) and torch.equal(ours.isinf(), wanted.isinf())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half", [1, 3, 8, 21])
def test_a_result_halfway_between_two_numbers_goes_to_the_even_one(dtype, half, backend):
    """1 times a cosine or a sine of 1 + n u / 2, u the unit in the last place of 1: exact in fp32, a tie for odd n."""
    step = torch.finfo(dtype).eps / 2
    ties = 1 + step * torch.arange(half * 5).float().view(5, half)
    q = torch.ones(1, 5, 1, 2 * half, dtype=dtype)
    for angles in (torch.complex(ties, torch.zeros_like(ties)), torch.complex(torch.zeros_like(ties), -ties)):
        for interleaved in (True, False):
            ours = kernels.fused_rope_qk(q, -q, angles, interleaved=interleaved, backend=backend)
            for found, x in zip(ours, (q, -q), strict=True):
                assert torch.equal(found, exact(x, angles, interleaved).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "r"), [(3, 2), (7, 6), (17, 16), (6, 6), (33, 30)])
def test_an_odd_tail_and_an_odd_number_of_pairs_are_right_in_place_and_elsewhere(d, r, dtype, backend):
    """What stands behind the pairs is copied, one element as well as many; in place it stays."""
    q, k, rotations = inputs((2, 3, 3, 1, d, r), dtype)
    for interleaved in (True, False):
        wanted = [exact(x, rotations, interleaved) for x in (q, k)]
        for how in ({}, {"in_place": True}, {"out": (torch.full_like(q, 7), torch.full_like(k, 7))}):
            found = kernels.fused_rope_qk(q.clone(), k.clone(), rotations, interleaved=interleaved, backend=backend,
                                          **how)
            for ours, true, x in zip(found, wanted, (q, k), strict=True):
                close(ours, true)
                assert torch.equal(ours[..., r:], x[..., r:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 0, 3, 1, 4, 4), (0, 5, 3, 1, 4, 4), (2, 5, 0, 2, 4, 4), (2, 5, 3, 0, 8, 8),
                                   (2, 5, 0, 0, 4, 4), (2, 5, 1, 1, 0, 0)], ids=str)
def test_nothing_is_turned_into_nothing(shape, backend):
    q, k, rotations = inputs(shape)
    for ours, x in zip(kernels.fused_rope_qk(q, k, rotations, backend=backend), (q, k), strict=True):
        close(ours, exact(x, rotations))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "positions", "offset"), [
    (torch.float32, None, 4), (torch.bfloat16, torch.tensor([8, 0, 1, 1, 5]), 0)], ids=["offset", "positions"])
def test_the_operators_pass_pytorchs_own_check(backend, dtype, positions, offset):
    q, k, rotations = inputs((2, 5, 3, 1, 8, 4), dtype, rows=9)
    operators = getattr(torch.ops, kernels.LIBRARIES[backend])
    how = (torch.view_as_real(rotations), positions, offset, False, False)
    transposed = q.transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(operators.rope.default, (transposed.requires_grad_(), k.clone().requires_grad_(), *how))
    torch.library.opcheck(operators.rope_.default, (q.clone(), k.clone(), *how))
    torch.library.opcheck(operators.rope_into.default, (q, k, torch.zeros_like(q), torch.zeros_like(k), *how))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_three_compile_into_one_graph(backend):
    q, k, rotations = inputs((2, 5, 3, 1, 8, 8), rows=9)

    def step(q, k, room, offset):
        a, b = kernels.fused_rope_qk(q * 2, k * 2, rotations, offset=offset, backend=backend)
        a, b = kernels.fused_rope_qk(a + 1, b + 1, rotations, offset=offset, in_place=True, backend=backend)
        out = torch.empty_like(a), room[:, 2:7]
        kernels.fused_rope_qk(a, b, rotations, out=out, offset=offset, backend=backend)
        return out[0] + room.sum()

    rooms = torch.zeros(2, 9, 1, 8), torch.zeros(2, 9, 1, 8)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for offset in (0, 3, 4):
        assert torch.equal(compiled(q, k, rooms[0], offset), step(q, k, rooms[1], offset))
        assert torch.equal(*rooms)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("changes", "message"), [
    ({"q": torch.zeros(2, 5, 3, 8, dtype=torch.float64)}, "Double, wanted Float"),
    ({"k": torch.zeros(2, 5, 1, 8).bfloat16()}, "k has dtype BFloat16, wanted Float"),
    ({"k": torch.zeros(2, 4, 1, 8)}, r"wanted \(B, T, H, d\) and \(B, T, K, d\)"),
    ({"rotations": torch.ones(9, 5, dtype=torch.complex64)}, "r <= d"),
    ({"rotations": torch.ones(3, 5, 4, dtype=torch.complex64)}, r"without positions and offset, \(B, T, r/2, 2\)"),
    ({"rotations": torch.ones(4, 4, dtype=torch.complex64)}, "positions 0 to 5 .* wanted, and rotations has 4 rows"),
    ({"offset": 5}, "positions 5 to 10 .* rotations has 9 rows"),
    ({"offset": -1}, "positions -1 to 4"),
    ({"positions": torch.arange(5), "offset": 1}, "use one of them"),
    ({"positions": torch.arange(4)}, r"wanted \(T\) or \(B, T\)"),
    ({"positions": torch.arange(5).int()}, "positions has dtype Int, wanted Long"),
    ({"positions": torch.arange(5, 10)}, "position 9 has no row: rotations has 9"),
    ({"positions": torch.arange(-1, 4)}, "position -1 has no row"),
    ({"in_place": True, "q": torch.zeros(2, 5, 8, 3).transpose(-1, -2)}, "q has stride 3 in its last dimension"),
    ({"in_place": True, "q": torch.zeros(2, 5, 1, 8).expand(2, 5, 3, 8)}, "single memory location"),
    ({"in_place": True, "q": torch.zeros(2, 5, 3, 8, requires_grad=True)}, "q wants a gradient"),
    ({"out": (torch.zeros(2, 5, 3, 8), torch.zeros(2, 4, 1, 8))}, "k_out has shape"),
    ({"out": (torch.zeros(2, 5, 3, 8).half(), torch.zeros(2, 5, 1, 8))}, "q_out has dtype Half, wanted Float"),
    ({"out": OUT, "k": OUT[1]}, "written-to tensor refer to a single memory location"),
    ({"out": OUT, "k": torch.zeros(2, 5, 1, 8, requires_grad=True)}, "does not pass through"),
])
def test_wrong_arguments_are_refused_with_the_wanted_and_the_given(changes, message, backend):
    q, k, rotations = inputs((2, 5, 3, 1, 8, 8), rows=9)
    names = {"q": "q_BTHd", "k": "k_BTKd"}
    arguments = {"q_BTHd": q, "k_BTKd": k, "rotations": rotations, "backend": backend}
    with pytest.raises(RuntimeError, match=message):
        kernels.fused_rope_qk(**arguments | {names.get(name, name): value for name, value in changes.items()})


def test_two_places_for_a_result_and_angles_that_are_not_complex_are_refused():
    q, k, rotations = inputs((2, 5, 3, 1, 8, 8))
    with pytest.raises(ValueError, match="a result has one place"):
        kernels.fused_rope_qk(q, k, rotations, in_place=True, out=(q.clone(), k.clone()))
    with pytest.raises(ValueError, match="torch.float32, wanted torch.complex64"):
        kernels.fused_rope_qk(q, k, rotations.real)


def test_the_reference_of_both_is_the_reference_of_each():
    q, k, rotations = inputs((2, 5, 3, 1, 8, 8))
    for ours, x in zip(apply_rope_qk(q, k, rotations), (q, k), strict=True):
        close(ours, exact(x, rotations))


def test_lazily_conjugated_rotations_turn_back():
    q, k, rotations = inputs((1, 3, 2, 1, 8, 8))
    close(kernels.fused_rope_qk(q, k, rotations.conj(), backend=BACKENDS[0])[0], exact(q, rotations, inverse=True))


MUTANTS = [] if not BACKENDS else [
    Mutant("minillama.kernels", "ctx.interleaved, not ctx.inverse)", "ctx.interleaved, ctx.inverse)",
           lambda: test_the_gradient_is_the_turn_back("cpu", True)),
    Mutant("minillama.kernels", "ctx.offset, ctx.interleaved, not", "ctx.offset, True, not",
           lambda: test_the_gradient_is_the_turn_back("cpu", False)),
    Mutant("minillama.kernels", "how = (_table(rotations), positions,", "how = (_table(rotations), None,",
           lambda: test_positions_or_an_offset_choose_the_rows_of_the_table(SHAPES[1], "cpu")),
    Mutant("minillama.kernels", "(_table(rotations), positions, offset,", "(_table(rotations), positions, 0,",
           lambda: test_positions_or_an_offset_choose_the_rows_of_the_table((2, 3, 3, 1, 6, 4), "cpu")),
    Mutant("minillama.rope", "apply_rope(q_BTHd, rotations), apply_rope(k_BTKd, rotations)",
           "apply_rope(q_BTHd, rotations), k_BTKd", test_the_reference_of_both_is_the_reference_of_each),
]
