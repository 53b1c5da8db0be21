"""The kernels of a training step at their edges: nothing to do, any strides in gradients, and what is refused."""

import pytest
import torch
from test_kernels_training import DTYPES, normal, with_gradients

from minillama import kernels

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
ops = torch.ops.minillama


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_nothing_there_is_nothing_and_the_gradient_of_a_gain_is_zero(dtype):
    empty, gain = normal(0, 5, dtype=dtype), normal(5, dtype=dtype)
    y, dx, d_gain = with_gradients(lambda x, gain: ops.normalize(x, gain, 1e-5), (empty, gain), empty)
    assert y.shape == dx.shape == (0, 5) and d_gain.tolist() == [0.0] * 5 and d_gain.dtype == dtype
    for shape in ((0,), (3, 0), (0, 4)):
        a = normal(*shape, dtype=dtype)
        assert all(x.shape == shape and x.dtype == dtype for x in with_gradients(ops.silu_product, (a, a), a))


def test_the_loss_of_no_token_is_zero():
    none, targets = normal(0, 7), torch.zeros(0, dtype=torch.long)
    assert ops.cross_entropy_(none, targets, normal(0)).shape == (0,)
    hidden, weight = normal(0, 3).requires_grad_(), normal(7, 3).requires_grad_()
    loss = ops.head_loss(hidden, weight, targets, normal(0))[0]
    d_hidden, d_weight = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0 and d_hidden.shape == (0, 3) and torch.equal(d_weight, torch.zeros(7, 3))


def ways_to_lie(x):
    """The numbers of a matrix with other strides: columns together, gaps between numbers, and rows in a wider one."""
    gaps, wider = x.new_full((*x.shape, 2), 9.0), x.new_full((len(x), x.shape[1] + 3), 9.0)
    gaps[..., 0], wider[:, 2:-1] = x, x
    return [x.T.contiguous().T, gaps[..., 0], wider[:, 2:-1]]


def test_gradients_do_not_depend_on_how_anything_lies():
    x, dy, gain = normal(7, 37), normal(7, 37, seed=1), normal(37, seed=2)
    scale = ops.rms_norm(x, gain, 1e-5)[1]
    norm, gate = ops.rms_norm_backward(dy, x, gain, scale), ops.silu_product_backward(dy, x, 2 * x)
    for other_dy, other_x in zip(ways_to_lie(dy), ways_to_lie(x)[::-1], strict=True):
        other_gain, other_scale = (torch.stack([one, one], 1)[:, 0] for one in (gain, scale))
        found = ops.rms_norm_backward(other_dy, other_x, other_gain, other_scale)
        assert all(map(torch.equal, found, norm))
        for inputs in ((other_dy, x, 2 * x), (dy, other_x, 2 * x), (dy, x, 2 * other_x)):
            assert all(map(torch.equal, ops.silu_product_backward(*inputs), gate))
    same = normal(1).expand(7, 37)  # as the gradient of a sum is: one number with strides of zero
    assert all(map(torch.equal, ops.rms_norm_backward(same, x, gain, scale),
                   ops.rms_norm_backward(same.contiguous(), x, gain, scale)))


def test_targets_and_factors_may_lie_apart():
    logits, targets, factors = normal(5, 9), torch.tensor([8, 0, -100, 3, 3]), normal(5, seed=1)
    found, wanted = logits.clone(), logits.clone()
    losses = ops.cross_entropy_(found, torch.stack([targets, targets], 1)[:, 1], torch.stack([factors] * 2, 1)[:, 0])
    assert torch.equal(losses, ops.cross_entropy_(wanted, targets, factors)) and torch.equal(found, wanted)


X, GAIN, ROWS = normal(3, 5), normal(5), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: ops.rms_norm(X[0, 0], GAIN, 1e-5), r"x has shape \[\], wanted \(\.\.\., D\)"),
    (lambda: ops.rms_norm(normal(3, 0), normal(0), 1e-5), r"x has shape \[3, 0\], wanted \(\.\.\., D\)"),
    (lambda: ops.rms_norm(X, GAIN.double(), 1e-5), "weight has dtype Double"),
    (lambda: ops.rms_norm_backward(X[:2], X, GAIN, normal(3)), r"dy has shape \[2, 5\], wanted \[3, 5\]"),
    (lambda: ops.rms_norm_backward(X.double(), X, GAIN, normal(3)), "dy has dtype Double"),
    (lambda: ops.rms_norm_backward(X, X, normal(4), normal(3)), r"weight has shape \[4\], wanted \[5\]"),
    (lambda: ops.rms_norm_backward(X, X, GAIN, normal(3, 1)), r"scale has shape \[3, 1\], wanted \[3\]"),
    (lambda: ops.rms_norm_backward(X, X, GAIN, normal(3).half()), "scale has dtype Half, wanted Float"),
    (lambda: ops.silu_product(X.double(), X.double()), "a has dtype Double"),
    (lambda: ops.silu_product_backward(X[:2], X, X), r"b has shape \[2, 5\], wanted \[3, 5\]"),
    (lambda: ops.silu_product_backward(X, X, X[:2]), r"b has shape \[2, 5\], wanted \[3, 5\]"),
    (lambda: ops.cross_entropy_(X[0].clone(), ROWS, normal(3)), r"logits have shape \[5\], wanted \(N, V\)"),
    (lambda: ops.cross_entropy_(normal(3, 0), ROWS, normal(3)), r"logits have shape \[3, 0\], wanted \(N, V\)"),
    (lambda: ops.cross_entropy_(X.clone(), ROWS.int(), normal(3)), "targets has dtype Int, wanted Long"),
    (lambda: ops.cross_entropy_(X.clone(), ROWS, normal(3).double()), "factors has dtype Double, wanted Float"),
    (lambda: ops.cross_entropy_(X.clone(), ROWS, normal(2)), r"factors has shape \[2\], wanted \[3\]"),
    (lambda: ops.cross_entropy_(X.clone().requires_grad_(), ROWS, normal(3)), "logits wants a gradient"),
    (lambda: ops.head_loss(X, normal(7, 4), ROWS, normal(3)), r"hidden has shape \[3, 5\] and weight \[7, 4\]"),
    (lambda: ops.head_loss(X[0], normal(7, 5), ROWS, normal(3)), r"hidden has shape \[5\] and weight \[7, 5\]"),
    (lambda: ops.head_loss(X, normal(7, 5).half(), ROWS, normal(3)), "weight has dtype Half, wanted Float"),
    (lambda: ops.head_loss(X, normal(0, 5), ROWS, normal(3)), r"weight has shape \[0, 5\]"),
    (lambda: ops.head_loss(X, normal(7, 5), ROWS, normal(3), -1), "rows is -1"),
    (lambda: ops.head_loss(X, normal(7, 5), ROWS[:2], normal(3)), r"targets has shape \[2\], wanted \[3\]"),
    (lambda: ops.head_loss(X, normal(7, 5), ROWS, normal(4)), r"factors has shape \[4\], wanted \[3\]"),
])
def test_what_does_not_fit_is_refused_before_anything_is_written(call, words):
    with pytest.raises(RuntimeError, match=words):
        call()
