"""Attention's kernel for processors: every odd shape, mask, dtype and kind of vectors, within what rounding allows."""

import math

import pytest
import torch
from mutants import Mutant
from test_nf4_kernel import backend as chosen_vectors

from minillama import kernels
from minillama.attention import attention
from minillama.parity.kernels_verify import attend_by_formula

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
backend = chosen_vectors  # the fixture: which vectors the loops are to use
every_kind = pytest.mark.parametrize("backend", ["cpu plain", "cpu avx2", "cpu avx512"], indirect=True)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [(1, 1), (1, 33), (3, 79), (15, 16), (17, 17), (33, 5), (65, 31), (64, 96), (65, 257), (130, 67)]  # (T, S)
flash = torch.ops.minillama.flash_attention if "cpu" in kernels.built_backends() else None


def random_inputs(B, H, K, T, S, d, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(B, *size, d).to(dtype).requires_grad_() for size in ((H, T), (K, S), (K, S))]


def attend(*inputs, **more):
    return kernels.flash_attention(*inputs, backend="cpu", **more)


def with_gradients(attend, inputs, direction, **more):
    """{"out": ..., "dq": ..., "dk": ..., "dv": ...}"""
    out = attend(*inputs, **more)
    found = out.detach(), *torch.autograd.grad(out, inputs, direction)
    return dict(zip(("out", "dq", "dk", "dv"), found, strict=True))


def law_holds(inputs, causal=True, mask=None):
    """Every number of the result and of its gradients is within what fp32 rounding and one rounding of the result may
    do, by the rules of `minillama.rounding`, of the formula in float64."""
    q, dtype = inputs[0], inputs[0].dtype
    direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = with_gradients(attend, inputs, direction, causal=causal, mask_BTS=mask)
    plain = [x.detach() for x in inputs]
    for name, bound in attend_by_formula(*plain, direction, causal, plain=False, mask_BTS=mask).items():
        bound = bound if bound.dtype == dtype else bound.stored(dtype)
        error = (found[name].double() - bound.value).abs()
        assert found[name].dtype == dtype and found[name].shape == bound.value.shape
        worst = float((error / bound.error.clamp(min=1e-300)).nan_to_num(math.inf).max())
        assert worst <= 1, f"{name} is {worst:.1f} bounds off the formula in float64"


def masks(T, S, B=2):
    """Random ones, of which row 0's first query sees nothing and none in row 1 the first key; left padding, as a
    broadcast view; packed documents; one row for all."""
    random = torch.rand(B, T, S, generator=torch.Generator().manual_seed(T + S)) < 0.5
    random[0, 0], random[1:, :, 0] = False, False
    padding = (torch.arange(S) >= torch.tensor([0, S // 2])[:, None])[:, None].expand(-1, T, -1)
    documents = torch.arange(S) // 11
    same = (documents[:, None] == documents).expand(B, -1, -1)[:, S - T:] if T <= S else random
    return [random, padding, same, random[:1, :1]]


@every_kind
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), PAIRS)
def test_odd_lengths_are_within_rounding(T, S, causal, backend):
    law_holds(random_inputs(1, 2, 1, T, S, 20), causal)


@every_kind
@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, d) for d in (1, 6, 64, 72, 128, 200)] +
                         [(dtype, d) for dtype in DTYPES[1:] for d in (6, 33, 64)])
def test_every_width_and_dtype_is_within_rounding(d, dtype, backend):
    law_holds(random_inputs(1, 1, 1, 18, 35, d, dtype))


@pytest.mark.parametrize(("H", "K"), [(2, 2), (4, 2), (4, 1), (6, 3)])
def test_grouped_heads_are_within_rounding(H, K):
    law_holds(random_inputs(2, H, K, 9, 70, 16))


@every_kind
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 40), (3, 79), (67, 67), (70, 20)])
def test_masks_are_within_rounding(T, S, causal, backend):
    for mask in masks(T, S):
        law_holds(random_inputs(2, 2, 1, T, S, 8), causal, mask)


def test_a_mask_of_any_strides_is_read():
    inputs, mask = random_inputs(2, 2, 1, 37, 41, 8), masks(37, 41)[0]
    wanted = attend(*inputs, mask_BTS=mask)
    assert torch.equal(attend(*inputs, mask_BTS=mask.mT.contiguous().mT), wanted)
    wide = torch.ones(2, 37, 82, dtype=torch.bool)
    wide[:, :, 1::2] = mask
    assert torch.equal(attend(*inputs, mask_BTS=wide[:, :, 1::2]), wanted)
    column = mask[:, :, :1]  # a query sees all keys or none
    assert torch.equal(attend(*inputs, mask_BTS=column), attend(*inputs, mask_BTS=column.expand(-1, -1, 41).clone()))


def test_any_strides_are_read_also_those_of_the_gradient():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 70, 3, 100).transpose(1, 2).requires_grad_() for _ in range(3)]  # (B, T, H, d) in memory
    direction = torch.randn(100, 70, 3, 2).permute(3, 2, 1, 0)  # d is the slowest
    ours = with_gradients(attend, inputs, direction)
    dense = [x.detach().contiguous().requires_grad_() for x in inputs]
    again = with_gradients(attend, dense, direction.contiguous())
    assert all(torch.equal(ours[name], again[name]) for name in ours)


@pytest.mark.parametrize("masked", [True, False])
def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(masked):
    q, k, v = random_inputs(1, 1, 1, 5, 5 if masked else 2, 4)
    mask = (torch.arange(5) >= 3)[None, :, None].expand(1, 5, 5) if masked else None
    out, lse, _ = flash(q, k, v, True, mask)
    assert (out[:, :, :3] == 0).all() and (lse[:, :, :3] == math.inf).all() and lse[:, :, 3:].isfinite().all()
    gradients = torch.autograd.grad(out.sum(), [q, k, v])
    assert (gradients[0][:, :, :3] == 0).all() and all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_in_plain_attention_is_not_finite_here(which, value):
    """One number of q, k or v; also where all scores of a query are -inf, which are seen and yet weigh nothing."""
    for place in (0, 40, 69):
        inputs = [x.detach() for x in random_inputs(1, 1, 1, 70, 70, 4)]
        inputs[1].abs_()
        inputs[which][0, 0, place, 2] = value
        wanted, ours = attention(*inputs), attend(*inputs)
        seen = torch.arange(70) >= (0 if which == 0 else place)  # hidden keys times 0 are NaN in plain attention
        assert torch.equal(ours.isnan()[:, :, seen], wanted.isnan()[:, :, seen])
        both = ours.isfinite() & wanted.isfinite()
        torch.testing.assert_close(ours[both], wanted[both])


@every_kind
@pytest.mark.parametrize("d", [1, 12, 16, 80])
def test_scores_far_from_zero_neither_overflow_nor_vanish(d, backend):
    """One key has all the weight: 1, whether or not 1 / sqrt(d) is a power of two."""
    q, k, v = (x.detach() for x in random_inputs(1, 1, 1, 7, 69, d))
    for factor in (30, 1e4, -1e4):
        inputs = [(q * factor).requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()]
        found = with_gradients(attend, inputs, torch.ones(1, 1, 7, d))
        assert all(x.isfinite().all() for x in found.values())
        law_holds(inputs)
    law_holds([x.requires_grad_() for x in (-1e3 * q.abs(), k.abs(), v)])  # all far below zero
    largest = (q.double() @ k.double().mT).masked_fill(torch.ones(7, 69).tril(62) == 0, -math.inf).argmax(-1)
    chosen = v.detach().gather(2, largest[..., None].expand(-1, -1, -1, d))
    torch.testing.assert_close(attend(q * 1e4, k, v).detach(), chosen)


@every_kind
def test_exponentials_are_right_to_two_units(backend):
    """Two keys, of scores 0 and x: the second's share is 1 / (1 + exp(-x)). Roundings: two of x log2(e), in all 2 |x|,
    two of the exponential, and one each of the sum, its inverse and the product with that."""
    x = -torch.linspace(0, 87, 4001)
    k = torch.stack([torch.zeros_like(x), x], 1)[:, None, :, None]
    v = torch.tensor([0.0, 1.0])[None, None, :, None].expand(4001, 1, 2, 1)
    share = attend(torch.ones(4001, 1, 1, 1), k, v).flatten().double()
    wanted = x.double().sigmoid()
    assert ((share - wanted).abs() <= (2 * x.abs() + 5) * 2.0**-24 * wanted).all()


def test_the_log_sum_of_exponentials_is_returned_with_its_gradient():
    q, k, v = random_inputs(1, 2, 1, 6, 79, 8)
    _, ours, _ = flash(q, k, v, False)
    scores = q.double() @ k.double().mT / math.sqrt(8)
    wanted = scores.logsumexp(-1)
    bound = 8 * torch.finfo(torch.float32).eps * float(scores.detach().abs().max())  # 8 products, then exp and log
    assert (ours.double() - wanted).abs().max() <= bound
    direction = torch.randn(1, 2, 6)
    gradients = torch.autograd.grad(ours, [q, k], direction)
    for o, w in zip(gradients, torch.autograd.grad(wanted, [q, k], direction.double()), strict=True):
        torch.testing.assert_close(o.double(), w.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("B", "T", "S"), [(0, 3, 4), (1, 0, 4), (1, 3, 0), (1, 0, 0)])
def test_nothing_attends_to_nothing(B, T, S):
    found = with_gradients(attend, random_inputs(B, 2, 1, T, S, 4), torch.ones(B, 2, T, 4))
    assert found["dq"].shape == (B, 2, T, 4) and found["dk"].shape == found["dv"].shape == (B, 1, S, 4)
    assert all((x == 0).all() for x in found.values())  # also with S = 0: what is mixed of no values is 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_pass_pytorchs_own_check(dtype):
    q, k, v = random_inputs(1, 2, 1, 5, 6, 4, dtype)
    mask = masks(5, 6, 2)[0][:1]
    for more in ((), (mask,)):
        torch.library.opcheck(flash.default, (q, k, v, True, *more))
        inputs = [x.detach() for x in (q, k, v)]
        out, lse, rows = flash(*inputs, True, *more)
        torch.library.opcheck(torch.ops.minillama.flash_attention_backward.default,
                              (torch.randn_like(out), torch.randn_like(lse), *inputs, out, rows, True, *more))


def test_it_compiles_into_one_graph():
    function = torch.compile(lambda q, k, v, mask: attend(q * 2, k, v, mask_BTS=mask).square().sum(), fullgraph=True,
                             backend="aot_eager")
    inputs, mask = random_inputs(2, 2, 1, 5, 6, 4), masks(5, 6)[0]
    ours = torch.autograd.grad(function(*inputs, mask), inputs)
    q, k, v = inputs
    wanted = torch.autograd.grad(attention(q * 2, k, v, mask_BTS=mask).square().sum(), inputs)
    for o, w in zip(ours, wanted, strict=True):
        torch.testing.assert_close(o, w)


@every_kind
def test_one_thread_and_two_give_the_same_bits_twice(backend):
    inputs, direction, found = random_inputs(2, 6, 3, 150, 190, 20), torch.randn(2, 6, 150, 20), []
    threads = torch.get_num_threads()
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        found.append(with_gradients(attend, inputs, direction, mask_BTS=masks(150, 190)[0]))
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


@pytest.mark.parametrize(("q", "k", "v", "message"), [
    ((1, 3, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8), "3 query heads cannot share 2 key/value heads"),
    ((1, 2, 5, 8), (1, 2, 5, 4), (1, 2, 5, 4), "wanted the same B and d"),
    ((1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 6, 8), r"k has shape \[1, 2, 5, 8\] and v \[1, 2, 6, 8\], wanted one"),
    ((1, 2, 5, 513), (1, 2, 5, 513), (1, 2, 5, 513), "head width 513 is not allowed: from 1 to 512"),
    ((2, 5, 8), (2, 5, 8), (2, 5, 8), r"wanted \(B, H, T, d\)"),
])
def test_wrong_shapes_are_refused_with_the_wanted_and_the_given(q, k, v, message):
    with pytest.raises(RuntimeError, match=message):
        attend(torch.zeros(q), torch.zeros(k), torch.zeros(v))


def test_wrong_masks_and_mixed_dtypes_are_refused():
    q = torch.zeros(2, 1, 3, 4)
    with pytest.raises(RuntimeError, match="k has dtype Half, wanted Float"):
        attend(q, q.half(), q)
    with pytest.raises(RuntimeError, match="mask has dtype Float, wanted Bool"):
        attend(q, q, q, mask_BTS=torch.ones(2, 3, 3))
    for shape in ((3, 3), (2, 3, 4), (3, 3, 3)):
        with pytest.raises(RuntimeError, match=r"mask has shape .*, wanted \(2, 3, 3\), or 1s in it"):
            attend(q, q, q, mask_BTS=torch.ones(shape, dtype=torch.bool))


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS)[0]", "(q_BHTd, k_BKSd, v_BKSd, causal)[0]",
           lambda: law_holds(random_inputs(2, 2, 1, 3, 7, 4), mask=masks(3, 7)[0])),
    Mutant("minillama.kernels", "*tensors, ctx.causal, mask), None, None", "*tensors, ctx.causal), None, None",
           lambda: law_holds(random_inputs(2, 2, 1, 3, 7, 4), mask=masks(3, 7)[0])),
    Mutant("minillama.kernels", "*tensors, ctx.causal, mask), None, None", "*tensors, True, mask), None, None",
           lambda: law_holds(random_inputs(2, 2, 1, 3, 7, 4), causal=False)),
]
