"""Checks of exercise 05: the backward pass of RMSNorm against autograd, in float64."""

import torch

from minillama.course.exercise import close
from minillama.rms_norm import rms_norm

HINTS = {
    "gain_gradient": (
        "Freeze everything but the gain: y_i is the gain g_i times a number that you know. Which one?",
        "That number is x_i already divided by the RMS, not x_i itself.",
        "One gain serves all tokens: multiply dy and the normalised x place by place, then sum over every axis "
        "but the last.",
    ),
    "input_gradient": (
        "x_j reaches the loss on two ways: through its own y_j, and through r, which scales every y_i.",
        "The first way passes the gain; for the second you need dr/dx_j = -r^3 x_j / D.",
        "The second way collects from all i: the sum over i of dy_i g_i x_i, times dr/dx_j. Mind that 1/D times "
        "a sum is a mean.",
    ),
}


def _case(shape, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x, dy, gain = (torch.randn(size, generator=generator, dtype=torch.float64)
                   for size in (shape, shape, shape[-1:]))
    x, gain = x.requires_grad_(), (gain + 1.5).requires_grad_()
    rms_norm(x, gain, eps).backward(dy)
    return (dy, x.detach(), gain.detach(), eps), x.grad, gain.grad


CASES = [((1, 1), 1e-2), ((1, 5), 1e-5), ((7, 3), 1e-5), ((2, 3, 8), 0.3), ((6,), 1e-6)]


def check_gain_gradient(learner):
    for seed, (shape, eps) in enumerate(CASES):
        arguments, _, wanted = _case(shape, eps, seed)
        got = learner.gain_gradient(*arguments)
        alone = arguments[1].numel() == shape[-1] and getattr(got, "shape", None) == wanted.shape  # one token: no sum
        close(f"gain_gradient for x of shape {shape}", got, wanted, 1e-9, hint=1 if alone else 2)


def check_input_gradient(learner):
    for seed, (shape, eps) in enumerate(CASES):
        arguments, wanted, _ = _case(shape, eps, seed)
        dy, x, gain, _ = arguments
        r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        got = learner.input_gradient(*arguments)
        only_first_way = getattr(got, "shape", None) == x.shape and torch.allclose(got.double(), dy * gain * r)
        close(f"input_gradient for x of shape {shape}", got, wanted, 1e-9, hint=0 if only_first_way else 1)


WRONG = [
    (".reshape(-1, x.shape[-1]).sum(0)", "", "gain_gradient", 2),  # forgets that tokens share the gain
    ("(dy * unit)", "(dy * x)", "gain_gradient", 1),
    ("direct - through_r", "direct", "input_gradient", 0),  # r taken for a constant
    ("direct - through_r", "direct + through_r", "input_gradient", 1),
    ("(dunit * x).mean(", "(dunit * x).sum(", "input_gradient", 1),
    ("dunit = dy * gain\n", "dunit = dy\n", "input_gradient", 1),
    ("unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)",
     "unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))", "gain_gradient", 1),
    ("x.shape[-1]).sum(0)", "x.shape[-1]).mean(0)", "gain_gradient", 2),
    ("r.pow(3) * x", "r * x", "input_gradient", 1),
    ("(dunit * x).mean(", "(dy * x).mean(", "input_gradient", 1),
    ("direct = r * dunit", "direct = dunit", "input_gradient", 1),
]
