"""Checks of exercise 06: the published widths, and the slope against autograd."""

import torch

from minillama.config import hidden_dim_rule
from minillama.course.exercise import Wrong, close

HINTS = {
    "width": (
        "Two thirds of 4 dim: for dim = 4096 that is 10922, before anything is rounded to a multiple.",
        "Round up: divide, round the quotient up, multiply back. A width that is a multiple already stays.",
        "The multiplier comes before the rounding to a multiple, and its product is cut to a whole number.",
    ),
    "slope": (
        "A product has a slope of two parts: the slope of a times sigmoid(a), plus a times the slope of sigmoid(a).",
        "The slope of the sigmoid s is s (1 - s).",
        "exp(-a) is infinite at a = -1000 in every float: let torch.sigmoid deal with that.",
    ),
}


def check_width(learner):
    for dim, wanted in ((4096, 11008), (5120, 13824), (6656, 17920), (8192, 22016), (96, 256), (1, 256)):
        got = learner.hidden_width(dim)
        close(f"width for dim = {dim}", got, wanted, 0.0, hint=1 if got in (wanted - 256, wanted + 256) else 0)
    close("width for dim = 3, multiple of 8", learner.hidden_width(3, 8), 8, 0.0, hint=1)
    close("width for dim = 100, multiple of 1", learner.hidden_width(100, 1), 266, 0.0, hint=0)  # of 266.67
    for case in ((8192, 4096, 1.3), (4096, 1024, 1.3), (100, 1, 1.5), (5, 1, 1.3)):  # the last: 13 * 1.3 = 16.9
        close(f"width for {case}", learner.hidden_width(*case), hidden_dim_rule(*case), 0.0, hint=2)


def check_slope(learner):
    for shape in ((), (1,), (3, 5), (2, 1, 7)):
        a = (torch.randn(shape, dtype=torch.float64) * 4).requires_grad_()
        wanted, = torch.autograd.grad((a * torch.sigmoid(a)).sum(), a)
        a = a.detach()
        got = learner.silu_slope(a)
        s = torch.sigmoid(a)
        if torch.is_tensor(got) and got.shape == a.shape and (torch.allclose(got, s)
                                                              or torch.allclose(got, a * s * (1 - s))):
            raise Wrong("this is only one of the two parts of the slope", 0)
        close(f"slope for a of shape {shape}", got, wanted, 1e-12, hint=1)
    far = torch.tensor([-1000.0, 0.0, 1000.0])
    close("slope at -1000, 0, 1000", learner.silu_slope(far), torch.tensor([0.0, 0.5, 1.0]), 1e-6, hint=2)


WRONG = [
    ("int(2 * (4 * dim) / 3)", "4 * dim", "width", 0),
    ("int(2 * (4 * dim) / 3)", "round(2 * (4 * dim) / 3)", "width", 0),
    ("-(-width // multiple_of)", "width // multiple_of", "width", 1),
    ("-(-width // multiple_of)", "width // multiple_of + 1", "width", 1),  # moves on from a multiple
    ("width = int(multiplier * width)", "return int(multiplier * width)", "width", 2),
    ("int(multiplier * width)", "round(multiplier * width)", "width", 2),
    ("s + a * s * (1 - s)", "s", "slope", 0),
    ("s + a * s * (1 - s)", "s + a * s", "slope", 1),
    ("s = torch.sigmoid(a)", "s = torch.exp(a) / (1 + torch.exp(a))", "slope", 2),
    ("return steps * multiple_of", "return steps", "width", 0),
]
