"""The CUDA kernels of flash attention, run by the emulator: forward and backward, every odd shape."""

import math
import time

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.attention import attention
from minillama.parity.kernels_verify import attended

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
    the last place of the largest number; for dq and dk that is one which cancels, P (dO v^T - delta) k / sqrt(d).
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
        unit = torch.finfo(o.dtype).eps * float(size)
        error, of_plain = (float((found.double() - e).abs().max()) for found in (o, p))
        assert o.dtype == inputs[0].dtype and o.shape == e.shape
        if error > factor * of_plain + unit:  # plain PyTorch may be lucky on a processor; the arithmetic's bound is not
            assert allowed, f"{name}: error {error:.2e}, plain PyTorch has {of_plain:.2e}"
            bound = attended(*(x.detach() for x in inputs), direction, causal, plain=False)[name]
            bound = bound if bound.dtype == o.dtype else bound.stored(o.dtype)
            beyond = float(((o.double() - bound.value).abs() / bound.error.clamp(min=1e-300)).max())
            assert beyond <= 1, f"{name}: error {error:.2e}, plain PyTorch has {of_plain:.2e}; {beyond:.1f} bounds"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), PAIRS)
def test_odd_lengths_keep_the_tolerance_law(T, S, causal):
    law_holds(random_inputs(1, 2, 1, T, S, 12, torch.float32), causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 31, 32, 33, 64, 72, 80, 127, 128])
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
    out, lse = torch.ops.minillama_simt.flash_attention(q, k, v, True)
    assert (out[:, :, :3] == 0).all() and (lse[:, :, :3] == math.inf).all() and lse[:, :, 3:].isfinite().all()
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert (dq[:, :, :3] == 0).all() and dq.isfinite().all()


def test_a_value_that_is_not_seen_may_be_anything():
    """NaN in the future reaches no one, though weight 0 times NaN would be NaN."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, 20, 20, 8, torch.float32))
    clean = kernels.flash_attention(q[:, :, :16], k[:, :, :16], v[:, :, :16])
    k[:, :, 16:], v[:, :, 16:] = math.nan, math.nan
    assert torch.equal(kernels.flash_attention(q, k, v)[:, :, :16], clean)


@pytest.mark.parametrize("d", [1, 12, 16, 80])
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
    _, ours = torch.ops.minillama_simt.flash_attention(q, k, v, False)
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
    out, lse = torch.ops.minillama_simt.flash_attention(q, k, v, True)
    torch.library.opcheck(torch.ops.minillama_simt.flash_attention_backward.default,
                          (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, True))


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
    ((1, 2, 5, 129), (1, 2, 5, 129), (1, 2, 5, 129), "head width 129 is not allowed: from 1 to 128"),
    ((2, 5, 8), (2, 5, 8), (2, 5, 8), r"wanted \(B, H, T, d\)"),
])
def test_wrong_shapes_are_refused_with_the_wanted_and_the_given(q, k, v, message):
    with pytest.raises(RuntimeError, match=message):
        kernels.flash_attention(torch.zeros(q), torch.zeros(k), torch.zeros(v))


def test_a_mask_and_mixed_dtypes_are_refused():
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="no mask but the causal one"):
        kernels.flash_attention(q, q, q, mask_BTS=torch.ones(1, 2, 2, dtype=torch.bool))
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
    Mutant("minillama.kernels", "d_lse, *ctx.saved_tensors, ctx.causal", "d_lse, *ctx.saved_tensors, not ctx.causal",
           lambda: test_odd_lengths_keep_the_tolerance_law(3, 79, True)),
    Mutant("minillama.kernels", "(q_BHTd, k_BKSd, v_BKSd, causal)[0]", "(q_BHTd, k_BKSd, v_BKSd, True)[0]",
           lambda: test_odd_lengths_keep_the_tolerance_law(3, 79, False)),
]
