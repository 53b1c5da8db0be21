"""The CUDA kernels of flash attention, run by the emulator: forward and backward, every odd shape."""

import math
import time

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.attention import attention
from minillama.parity.kernels_verify import attend_by_formula

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [(1, 1), (1, 33), (3, 79), (17, 17), (16, 16), (15, 16), (18, 19), (33, 5), (5, 2), (61, 67)]  # (T, S)


def random_inputs(B, H, K, T, S, d, dtype, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(B, *size, d).to(dtype).requires_grad_() for size in ((H, T), (K, S), (K, S))]


def with_gradients(attend, inputs, direction):
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, direction.to(out.dtype))]


def law_holds(inputs, causal, allowed=True):
    """Error against float64 at most twice plain PyTorch's in this dtype, three times for gradients, plus one unit in
    the last place of the largest number; for dq and dk that is one which cancels, P (dO v^T - delta) k / sqrt(d), two
    sums of d products in two orders: the roundings of more than 80 grow with the root of their number.
    Else, where `allowed`, within what the arithmetic allows each number, as in `kernels verify`."""
    direction = torch.randn(inputs[0].shape).to(inputs[0].dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(lambda *x: attention(*x, causal), wide, direction)
    plain = with_gradients(lambda *x: attention(*x, causal), inputs, direction)
    ours = with_gradients(lambda *x: kernels.flash_attention(*x, causal), inputs, direction)
    q, k, v = (x.detach().abs().max() for x in wide)
    before = (direction.double() @ wide[2].detach().repeat_interleave(inputs[0].shape[1] // wide[2].shape[1], 1).mT)
    before = before.abs().max() / math.sqrt(wide[0].shape[-1])
    sizes = exact[0].abs().max(), before * k, before * q, exact[3].abs().max()
    for name, factor, size, o, p, e in zip(("out", "dq", "dk", "dv"), (2, 3, 3, 3), sizes, ours, plain, exact,
                                           strict=True):
        longer = math.sqrt(inputs[0].shape[-1] / 80) if name in ("dq", "dk") else 1
        unit = torch.finfo(o.dtype).eps * float(size) * max(1, longer)
        error, of_plain = (float((found.double() - e).abs().max()) for found in (o, p))
        assert o.dtype == inputs[0].dtype and o.shape == e.shape
        if not error <= factor * of_plain + unit:  # NaN too. Plain PyTorch may be lucky, the arithmetic's bound is not
            assert allowed, f"{name}: error {error:.2e}, plain PyTorch has {of_plain:.2e}"
            bound = attend_by_formula(*(x.detach() for x in inputs), direction, causal, plain=False)[name]
            bound = bound if bound.dtype == o.dtype else bound.stored(o.dtype)
            beyond = float(((o.double() - bound.value).abs() / bound.error.clamp(min=1e-300)).max())
            assert beyond <= 1, f"{name}: error {error:.2e}, plain PyTorch has {of_plain:.2e}; {beyond:.1f} bounds"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), PAIRS)
def test_odd_lengths_keep_the_tolerance_law(T, S, causal):
    law_holds(random_inputs(1, 2, 1, T, S, 12, torch.float32), causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 31, 32, 33, 64, 72, 80, 127, 128, 129, 192, 200, 255, 256])
def test_every_width_and_dtype_keeps_the_tolerance_law(d, dtype):
    law_holds(random_inputs(1, 1, 1, 18, 35, d, dtype), True)


@pytest.mark.parametrize(("H", "K"), [(2, 2), (4, 2), (4, 1), (6, 3)])
def test_grouped_heads_keep_the_tolerance_law(H, K):
    law_holds(random_inputs(2, H, K, 9, 20, 16, torch.float32), True)


def test_any_strides_are_read_also_those_of_the_gradient():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 10, 3, 8).transpose(1, 2).requires_grad_() for _ in range(3)]  # (B, T, H, d) in memory
    law_holds(inputs, True)
    direction = torch.randn(8, 10, 3, 2).permute(3, 2, 1, 0)  # d is the slowest
    ours = with_gradients(lambda *x: kernels.flash_attention(*x), inputs, direction)
    again = with_gradients(lambda *x: kernels.flash_attention(*x), [x.detach().contiguous().requires_grad_()
                                                                   for x in inputs], direction.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient():
    q, k, v = random_inputs(1, 1, 1, 5, 2, 4, torch.float32)
    out, lse, _ = torch.ops.minillama_simt.flash_attention(q, k, v, True)
    assert (out[:, :, :3] == 0).all() and (lse[:, :, :3] == math.inf).all() and lse[:, :, 3:].isfinite().all()
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert (dq[:, :, :3] == 0).all() and dq.isfinite().all()


@pytest.mark.parametrize(("dtype", "d", "tile"), [(torch.float32, 8, 16), (torch.bfloat16, 16, 64),
                                                  (torch.bfloat16, 136, 64), (torch.float16, 193, 64)])
def test_a_tile_of_the_future_may_be_anything_and_so_may_keys_within_one(dtype, d, tile):
    """A tile that is wholly in the future is not read, and a key that is not seen has no score."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, tile + 4, tile + 4, d, dtype))
    clean = kernels.flash_attention(q, k, v)
    k[:, :, tile:], v[:, :, tile:] = math.nan, math.nan
    assert torch.equal(kernels.flash_attention(q, k, v)[:, :, :tile], clean[:, :, :tile])
    k[:, :, 9:], v[:, :, tile:] = math.nan, 0
    assert torch.equal(kernels.flash_attention(q, k, v)[:, :, :9], clean[:, :, :9])


def each_query_alone(q, k, v):
    """Attention of every query with the keys and values that it sees and no others: what is not seen cannot matter."""
    T, S = q.shape[2], k.shape[2]
    return torch.cat([attention(q[:, :, i:i + 1], k[:, :, :i + 1 + S - T], v[:, :, :i + 1 + S - T], False)
                      for i in range(T)], 2)


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 5), (torch.bfloat16, 16), (torch.bfloat16, 131)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_seen_and_not_a_number_makes_nan_and_no_more_than_written_out(which, value, dtype, d):
    """A model that diverges does not look finite: out and all gradients."""
    for place in ((0, 0, 0, 0), (0, 0, 9, 2), (0, 0, -1, -1)):
        inputs = [x.detach() for x in random_inputs(1, 2, 1, 18, 21, d, dtype)]
        inputs[which][place] = value
        inputs = [x.requires_grad_() for x in inputs]
        direction = torch.ones(1, 2, 18, d)
        must, ours, may = (with_gradients(attend, inputs, direction)
                           for attend in (each_query_alone, kernels.flash_attention, attention))
        for name, m, o, x in zip(("out", "dq", "dk", "dv"), must, ours, may, strict=True):
            assert (m.isfinite() | ~o.isfinite()).all(), f"{name} is finite where what is seen is not"
            assert (o.isfinite() | ~x.isfinite()).all(), f"{name} is not finite where plain attention is"
        lse = torch.ops.minillama_simt.flash_attention(*inputs, True)[1]
        assert (lse.isnan() == must[0].isnan().all(-1)).all() or which == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_whose_scores_are_all_minus_infinity_are_nan_as_written_out(dtype):
    q, k, v = (torch.full((1, 1, 3, 8), x, dtype=dtype) for x in (-math.inf, 1.0, 1.0))
    assert kernels.flash_attention(q, k, v).isnan().all() and attention(q, k, v).isnan().all()


def within_nan(x, room=24):
    """The same numbers in memory where NaN stands behind every row and behind the last one of every head."""
    B, H, T, d = x.shape
    memory = torch.full((B, H, T + room, d + 8), math.nan, dtype=x.dtype)
    memory[:, :, :T, :d] = x.detach()
    return memory[:, :, :T, :d].requires_grad_(x.requires_grad)


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 12), (torch.bfloat16, 40), (torch.bfloat16, 17),
                                         (torch.float32, 200), (torch.bfloat16, 200), (torch.bfloat16, 130)])
def test_what_lies_behind_rows_and_columns_in_memory_reaches_no_one(dtype, d):
    inputs, direction = random_inputs(2, 2, 1, 5, 19, d, dtype), torch.randn(2, 2, 5, d).to(dtype)
    clean = with_gradients(kernels.flash_attention, inputs, direction)
    beside = with_gradients(kernels.flash_attention, list(map(within_nan, inputs)), within_nan(direction))
    assert all(torch.equal(a, b) for a, b in zip(clean, beside, strict=True))


@pytest.mark.parametrize("d", [5, 64])
def test_gradients_of_large_scores_are_as_right_as_plain_pytorchs(d):
    """Scores of some hundreds, where one rounding of the log of a sum would be 1e-5 of every share."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, 33, 40, d, torch.float32))
    law_holds([(q * 30).requires_grad_(), k.requires_grad_(), v.requires_grad_()], True)


@pytest.mark.long
@pytest.mark.parametrize(("B", "H"), [(65_537, 1), (1, 65_537)])
def test_more_heads_than_a_second_dimension_of_blocks_can_hold(B, H):
    q, k, v = (x.detach() for x in random_inputs(B, H, 1, 1, 1, 1, torch.float32))
    assert torch.equal(kernels.flash_attention(q, k, v), v.expand(q.shape))


def test_more_blocks_than_a_launch_has_are_refused():
    q = torch.zeros(1, 1, 1, 1).expand(2**20, 2**20, 1, 1)
    with pytest.raises(RuntimeError, match=r"more than the 2\^31 - 1 blocks of 4 rows .* split the batch"):
        kernels.flash_attention(q, q, q)


@pytest.mark.parametrize("d", [1, 12, 16, 80, 160])
def test_scores_far_from_zero_neither_overflow_nor_vanish(d):
    """One key has all the weight: 1, whichever of the products nvcc fuses with a sum, and whether or not 1 / sqrt(d) is
    a power of two (tests/simt/test_simt_contraction.py runs it fused)."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, 7, 19, d, torch.float32))
    for factor in (1e4, -1e4):
        inputs = [(q * factor).requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()]
        assert all(x.isfinite().all() for x in with_gradients(kernels.flash_attention, inputs, torch.ones(1, 1, 7, d)))
        law_holds(inputs, True, allowed=False)  # a weight of 1 is 1: no rounding of scores may reach it


def test_the_log_sum_of_exponentials_is_returned_with_its_gradient():
    q, k, v = random_inputs(1, 2, 1, 6, 9, 8, torch.float32)
    _, ours, _ = torch.ops.minillama_simt.flash_attention(q, k, v, False)
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(8)
    wanted = scores.logsumexp(-1)
    bound = 8 * torch.finfo(torch.float32).eps * float(scores.detach().abs().max())  # 8 products, then exp and log
    assert (ours.double() - wanted).abs().max() <= bound
    direction = torch.randn(1, 2, 6)
    gradients = torch.autograd.grad(ours, [q, k], direction)
    for o, w in zip(gradients, torch.autograd.grad(wanted, [q, k], direction.double()), strict=True):
        torch.testing.assert_close(o.double(), w.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("B", "T", "S"), [(0, 3, 4), (1, 0, 4), (1, 3, 0), (1, 0, 0)])
def test_nothing_attends_to_nothing(B, T, S):
    inputs = random_inputs(B, 2, 1, T, S, 4, torch.float32)
    out, dq, dk, dv = with_gradients(kernels.flash_attention, inputs, torch.ones(B, 2, T, 4))
    assert out.shape == dq.shape == (B, 2, T, 4) and dk.shape == dv.shape == (B, 1, S, 4)
    assert all((x == 0).all() for x in (out, dq, dk, dv))  # also with S = 0: what is mixed of no values is 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_pass_pytorchs_own_check(dtype):
    q, k, v = random_inputs(1, 2, 1, 5, 6, 4, dtype)
    torch.library.opcheck(torch.ops.minillama_simt.flash_attention.default, (q, k, v, True))
    q, k, v = (x.detach() for x in (q, k, v))
    out, lse, rows = torch.ops.minillama_simt.flash_attention(q, k, v, True)
    torch.library.opcheck(torch.ops.minillama_simt.flash_attention_backward.default,
                          (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, rows, True))


def test_it_compiles_into_one_graph():
    function = torch.compile(lambda q, k, v: kernels.flash_attention(q * 2, k, v).square().sum(), fullgraph=True,
                             backend="aot_eager")
    inputs = random_inputs(1, 2, 1, 5, 6, 4, torch.float32)
    q, k, v = inputs
    ours = torch.autograd.grad(function(*inputs), inputs)
    wanted = torch.autograd.grad(attention(q * 2, k, v).square().sum(), inputs)
    for o, w in zip(ours, wanted, strict=True):
        torch.testing.assert_close(o, w)


def test_fifty_runs_give_the_same_bits():
    inputs = random_inputs(1, 2, 1, 17, 19, 8, torch.float32)
    first = with_gradients(kernels.flash_attention, inputs, torch.ones(1, 2, 17, 8))
    for seed in range(49):
        with kernels.schedule(f"shuffle:{seed}"):
            again = with_gradients(kernels.flash_attention, inputs, torch.ones(1, 2, 17, 8))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("q", "k", "v", "message"), [
    ((1, 3, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8), "3 query heads cannot share 2 key/value heads"),
    ((1, 2, 5, 8), (1, 2, 5, 4), (1, 2, 5, 4), "wanted the same B and d"),
    ((1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 6, 8), r"k has shape \[1, 2, 5, 8\] and v \[1, 2, 6, 8\], wanted one"),
    ((1, 2, 5, 257), (1, 2, 5, 257), (1, 2, 5, 257), "head width 257 is not allowed: from 1 to 256"),
    ((2, 5, 8), (2, 5, 8), (2, 5, 8), r"wanted \(B, H, T, d\)"),
])
def test_wrong_shapes_are_refused_with_the_wanted_and_the_given(q, k, v, message):
    with pytest.raises(RuntimeError, match=message):
        kernels.flash_attention(torch.zeros(q), torch.zeros(k), torch.zeros(v))


def test_mixed_dtypes_are_refused():
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(RuntimeError, match="k has dtype Half, wanted Float"):
        kernels.flash_attention(q, q.half(), q)


@pytest.mark.long
def test_256_tokens_of_4_heads_take_under_a_third_of_a_second():
    q, k, v = (x.detach() for x in random_inputs(1, 4, 4, 256, 256, 64, torch.float32))
    def seconds():
        start = time.process_time()
        kernels.flash_attention(q, k, v)
        return time.process_time() - start
    assert min(seconds() for _ in range(3)) < 0.3


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "flash_attention_backward(d_out, d_lse,", "flash_attention_backward(d_out, 0 * d_lse,",
           test_the_log_sum_of_exponentials_is_returned_with_its_gradient),
    Mutant("minillama.kernels", "d_lse, *tensors, ctx.causal", "d_lse, *tensors, not ctx.causal",
           lambda: test_odd_lengths_keep_the_tolerance_law(3, 79, True)),
    Mutant("minillama.kernels", "(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS)[0]", "(q_BHTd, k_BKSd, v_BKSd, True)[0]",
           lambda: test_odd_lengths_keep_the_tolerance_law(3, 79, False)),
]
