"""RMSNorm, SwiGLU's gate and cross entropy in one pass: every odd size, dtype and kind of vectors, within rounding.

The oracle is the formula in float64. How far fp32 may be off it follows from the roundings: one an operation, at most
32 + 5 in a sum's chain, and one more to the result's dtype.
"""

import math

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.rms_norm import rms_norm
from minillama.swiglu import SwiGLU
from minillama.train.sequence_loss import IGNORE, model_loss, next_token_loss
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 5), (2, 2, 16), (1, 17), (65, 33), (4, 600)]
if "cpu" in kernels.built_backends():
    ops = torch.ops.minillama
    gated, normed_by_kernel, cross_entropy_ = ops.silu_product, ops.normalize, ops.cross_entropy_
U = 2.0**-24  # half a unit in the last place of fp32, relative


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def held(found, wanted, bound):
    """Every number is within its bound in fp32, and one rounding to the dtype it has, of the float64 formula."""
    rounding = torch.finfo(found.dtype).eps / 2 if found.dtype != torch.float32 else 0
    smallest = torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs()
    assert (error <= 1.01 * (bound + rounding * wanted.abs()) + smallest).all(), float((error - bound).max())


def with_gradients(function, inputs, direction):
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, direction.to(y.dtype))


# ---- RMSNorm

def norm_law(shape, dtype, gain_dtype=None, size=1.0):
    eps, x = 1e-5, size * normal(*shape, dtype=dtype)
    gain, dy = 1 + normal(shape[-1], dtype=gain_dtype or dtype, seed=1), normal(*shape, seed=2).to(dtype)
    y, dx, d_gain = with_gradients(lambda x, gain: normed_by_kernel(x, gain, eps), (x, gain), dy)
    wide, wide_gain, wide_dy = x.double(), gain.double(), dy.to(y.dtype).double()
    scale = (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    normed, g = wide * scale, wide_dy * wide_gain
    first = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0  # x * scale is rounded before the gain
    held(y, normed * wide_gain, (24 * U + first) * (normed * wide_gain).abs() + 2e-7 * (dtype == torch.float16))
    held(dx, scale * (g - normed * (g * normed).mean(-1, keepdim=True)),
         64 * U * scale * (g.abs() + normed.abs() * (g * normed).abs().mean(-1, keepdim=True)))
    terms = (wide_dy * normed).reshape(-1, shape[-1])
    held(d_gain, terms.sum(0), 128 * U * terms.abs().sum(0))
    assert y.dtype == torch.promote_types(x.dtype, gain.dtype)
    assert (dx.dtype, d_gain.dtype) == (x.dtype, gain.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_and_its_gradients_are_within_rounding(shape, dtype, vectors):
    norm_law(shape, dtype)


def test_a_gain_in_fp32_beside_a_short_x_and_tiny_numbers_are_within_rounding(vectors):
    norm_law((3, 37), torch.bfloat16, torch.float32)
    norm_law((3, 37), torch.float32, size=1e-4)  # eps counts


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_are_the_plain_forms(dtype):
    x, gain = normal(5, 33, dtype=dtype), normal(33, dtype=dtype)
    a, b = (normal(5, 33, dtype=dtype, seed=seed) for seed in (1, 2))
    unit = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(normed_by_kernel(x, gain, 1e-5), rms_norm(x, gain, 1e-5), rtol=unit, atol=unit)
    torch.testing.assert_close(gated(a, b), SwiGLU.multiply(a, b), rtol=unit, atol=unit)


def test_any_strides_are_read():
    x, gain = normal(4, 6, 5).transpose(0, 2), normal(8)[::2]
    dense = normed_by_kernel(x.contiguous(), gain.contiguous(), 1e-5)
    assert torch.equal(normed_by_kernel(x, gain, 1e-5), dense)
    assert torch.equal(gated(x, x), gated(x.contiguous(), x.contiguous()))


# ---- SwiGLU's gate

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 2049)])
def test_the_gate_and_its_gradients_are_within_rounding(shape, dtype, vectors):
    a, b, dy = (3 * normal(*shape, dtype=dtype, seed=seed) for seed in range(3))
    if a.numel() > 30:
        a.view(-1)[:6] = torch.tensor([90.0, -90.0, 0.0, 30.0, -30.0, -0.0])
    y, da, db = with_gradients(gated, (a, b), dy)
    a, b, dy = a.double(), b.double(), dy.double()
    s, steps = a.sigmoid(), U * (3 * a.abs() + 12)
    held(y, a * s * b, steps * (a * s * b).abs() + 1e-36)
    held(da, dy * b * (s + a * s * (1 - s)), steps * (dy * b).abs() * s * (1 + a.abs()) + 1e-36)
    held(db, dy * a * s, steps * (dy * a * s).abs() + 1e-36)


def test_what_is_no_number_passes_through_norm_and_gate():
    for value in (math.nan, math.inf):
        x = normal(3, 40)
        x[1, 20] = value
        y = normed_by_kernel(x, torch.ones(40), 1e-5)
        assert y[1].isnan().any() and y[[0, 2]].isfinite().all()
        assert torch.equal(gated(x, x).isfinite(), SwiGLU.multiply(x, x).isfinite())


# ---- cross entropy

def entropy_law(N, V, size=3.0):
    logits, factors = size * normal(N, V), 0.5 + normal(N, seed=1).abs()
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(2))
    targets[::3] = IGNORE
    wide = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted, wide, factors.double())
    found = logits.clone()
    losses = cross_entropy_(found, targets, factors)
    held(losses, wanted.detach(), 64 * U * (wanted.detach().abs() + (targets != IGNORE)))
    below = wide.detach().amax(-1, keepdim=True) - wide.detach()
    share, onehot = wide.detach().softmax(-1), torch.arange(V) == targets[:, None]
    held(found, gradient, factors[:, None].double() * U * (share * (3 * below + 64) + 4 * onehot) + 1e-37)
    assert not found[::3].any() and not losses[::3].any()


@pytest.mark.parametrize(("N", "V"), [(1, 1), (4, 2), (5, 15), (4, 16), (7, 17), (5, 70), (2, 1200)])
def test_losses_and_gradients_of_logits_are_within_rounding(N, V, vectors):
    entropy_law(N, V)


def test_logits_far_from_zero_neither_overflow_nor_vanish(vectors):
    entropy_law(5, 37, 1e4)
    entropy_law(5, 37, 30.0)


def test_a_token_that_cannot_be_has_no_share_and_what_is_no_number_shows():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [0.0, math.nan, 0.0], [0.0, math.inf, 0.0]])
    losses = cross_entropy_(logits, torch.tensor([0, 0, 0]), torch.ones(3))
    assert losses[0].item() == pytest.approx(math.log(2)) and losses[1:].isnan().all()
    assert logits[0].tolist() == [-0.5, 0.0, 0.5]


# ---- the laws of all

def all_results():
    x, dy = normal(131, 257).requires_grad_(), normal(131, 257, seed=1)
    gain, logits = normal(257, seed=2).requires_grad_(), normal(131, 257, seed=3)
    losses = cross_entropy_(logits, torch.arange(131), torch.ones(131))
    norm, gate = normed_by_kernel(x, gain, 1e-5), gated(x, gain.expand(131, 257))
    return [losses, logits, norm.detach(), gate.detach(), *torch.autograd.grad(norm, [x, gain], dy),
            *torch.autograd.grad(gate, [x, gain], dy)]


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(all_results()[:-1])  # the last is PyTorch's own sum over an expanded gain
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_they_obey_the_rules_of_pytorchs_operators():
    x, gain = normal(3, 5), normal(5, seed=1)
    scale = ops.rms_norm(x, gain, 1e-5)[1]
    trained = x.clone().requires_grad_(), gain.clone().requires_grad_()
    torch.library.opcheck(ops.rms_norm.default, (*trained, 1e-5))
    torch.library.opcheck(ops.rms_norm_backward.default, (x, x, gain, scale))
    torch.library.opcheck(ops.silu_product.default, (x.clone().requires_grad_(), x.clone().requires_grad_()))
    torch.library.opcheck(ops.silu_product_backward.default, (x, x, x))
    torch.library.opcheck(ops.rms_norm.default, (x, gain, 1e-5))
    torch.library.opcheck(ops.cross_entropy_.default, (x.clone(), torch.tensor([1, IGNORE, 4]), torch.ones(3)))


def test_what_does_not_fit_is_refused_with_the_wanted_and_the_given():
    x = normal(3, 5)
    for call, words in (
        (lambda: ops.rms_norm(x, normal(4), 1e-5), r"weight has shape \[4\], wanted \[5\]"),
        (lambda: ops.rms_norm(x.double(), normal(5), 1e-5), "x has dtype Double, wanted Float, BFloat16 or Half"),
        (lambda: ops.silu_product(x, x[:2]), r"b has shape \[2, 5\], wanted \[3, 5\]"),
        (lambda: ops.silu_product(x, x.bfloat16()), "b has dtype BFloat16, wanted Float"),
        (lambda: cross_entropy_(x.bfloat16(), torch.zeros(3, dtype=torch.long), x[:, 0]), "logits has dtype"),
        (lambda: cross_entropy_(x.mT, torch.zeros(5, dtype=torch.long), normal(5)), "wanted dense rows"),
        (lambda: cross_entropy_(x, torch.tensor([0, 5, 0]), normal(3)), "target 5 is not one of 5 tokens"),
        (lambda: cross_entropy_(x, torch.tensor([0, -1, 0]), normal(3)), "target -1 is not one of 5 tokens"),
        (lambda: cross_entropy_(x, torch.zeros(2, dtype=torch.long), normal(3)), "targets has shape"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()


# ---- in a model

def models(tied=False, dtype=torch.float32):
    """The same weights twice: by PyTorch's operations, and by the kernels."""
    config = ModelConfig(16, 2, 2, 23, hidden_dim=24, max_seq_len=32, tie_embeddings=tied)
    torch.manual_seed(0)
    model, other = Transformer(config).to(dtype), Transformer(config).to(dtype)
    other.load_state_dict(model.state_dict())
    return use_kernels(model, "torch"), use_kernels(other, "cpu")


def same_step(losses, pair, bound=1e-5):
    """Loss and gradients, within fp32 sums in another order: 1e-5 of numbers of size 1."""
    found, wanted = ([loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]
                     for loss, model in zip(losses, pair[::-1], strict=True))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= bound * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_of_pretraining_is_that_of_all_logits(tied):
    pair, tokens = models(tied), torch.randint(23, (3, 8), generator=torch.Generator().manual_seed(0))
    same_step([next_token_loss(model, tokens[:, :-1], tokens[:, 1:]) for model in pair[::-1]], pair)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 100])  # of logits at once
@pytest.mark.parametrize("trained", [False, True])
def test_the_loss_under_a_head_is_the_same_in_pieces(rows, trained):
    hidden, weight = normal(7, 6).requires_grad_(), normal(11, 6, seed=1).requires_grad_(trained)
    targets, factors = torch.tensor([0, 10, IGNORE, 3, 3, 7, 1]), normal(7, seed=2)
    losses = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    wanted, found = (losses * factors).sum(), torch.ops.minillama.head_loss(hidden, weight, targets, factors, rows)[0]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    inputs = [hidden, weight] if trained else [hidden]
    for a, b in zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * wanted, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # some 20 roundings of numbers of size 10


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reduction", ["tokens", "sum"])
def test_the_loss_of_fine_tuning_is_that_of_the_learned_logits(reduction, frozen):
    pair, tokens = models(), torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(0))
    labels, documents = tokens.masked_fill(tokens % 3 == 0, IGNORE), torch.arange(9).expand(3, 9) // 4
    for model in pair:
        model.output.requires_grad_(not frozen)
    same_step([2 * model_loss(model, tokens, labels, reduction, documents) for model in pair[::-1]], pair)


def test_a_model_in_bf16_has_gradients_in_bf16_that_point_the_same_way():
    pair, tokens = models(dtype=torch.bfloat16), torch.randint(23, (3, 8), generator=torch.Generator().manual_seed(0))
    same_step([next_token_loss(model, tokens[:, :-1], tokens[:, 1:]).bfloat16() for model in pair[::-1]], pair, 0.05)


def test_the_kernels_asked_for_are_the_ones_that_run_and_plain_ones_come_back():
    model, tokens = models()[1], torch.arange(8)[None]

    def calls(backend):
        with torch.profiler.profile() as profile:
            next_token_loss(use_kernels(model, backend), tokens[:, :-1], tokens[:, 1:])
        counts = {event.key.removeprefix("minillama::"): event.count for event in profile.key_averages()}
        return [counts.get(name, 0) > 0 for name in ("rms_norm", "silu_product", "head_loss")]

    assert calls("cpu") == [True] * 3 and calls("torch") == [False] * 3


def test_without_gradients_a_loss_is_pytorchs_of_all_logits():
    model, tokens = models()[1], torch.arange(8)[None]
    with torch.no_grad():
        logits = model(tokens[:, :-1]).flatten(0, 1)
        wanted = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
        assert torch.equal(next_token_loss(model, tokens[:, :-1], tokens[:, 1:]), wanted)


def pretraining():
    test_the_loss_of_pretraining_is_that_of_all_logits(False)


def fine_tuning():
    test_the_loss_of_fine_tuning_is_that_of_the_learned_logits("tokens", False)


RUN = test_the_kernels_asked_for_are_the_ones_that_run_and_plain_ones_come_back
LOSS = "minillama.train.sequence_loss"
MUTANTS = [
    Mutant(LOSS, "_reduce(ones_N, reduction), ones_N)", "_reduce(ones_N, 'sum'), ones_N)", fine_tuning),
    Mutant(LOSS, 'targets_N, "tokens")', 'targets_N, "sum")', pretraining),
    Mutant(LOSS, 'plain and backend_of(model) == "cpu"', "False", RUN),
    Mutant("minillama.backends", 'normalize if backend == "cpu"', 'normalize if False', RUN),
    Mutant("minillama.backends", '"silu_product") if backend == "cpu"', '"silu_product") if False', RUN),
]
