"""Checks of exercise 31: any tree of combinations gives the maximum and the sum of the whole row."""

import math
import random

from minillama.exercise import Wrong, close

HINTS = {
    "whole": (
        "The new maximum is the larger one. Each sum was taken relative to its own maximum: what is it worth under "
        "the new?",
        "exp(x - m_new) = exp(x - m_old) exp(m_old - m_new): a whole sum is multiplied by the last factor.",
        "Both sums are scaled, each by exp of its old maximum minus the new one, then added.",
    ),
    "empty": (
        "With an empty part, m is -inf. What is exp(-inf), and what is -inf - (-inf)?",
        "Two empty parts need a case of their own: (-inf, 0.0).",
    ),
    "large": ("A maximum of 1000 must not overflow: subtract so that exponents are never positive.",),
}


def _pair(xs):
    m = max(xs)
    return m, math.fsum(math.exp(x - m) for x in xs)


def _tree(combine, xs, rng):
    if len(xs) == 1:
        return xs[0], 1.0
    cut = rng.randrange(1, len(xs))
    return combine(_tree(combine, xs[:cut], rng), _tree(combine, xs[cut:], rng))


def check_whole(learner):
    rng = random.Random(0)
    for count in (2, 3, 7, 64):
        xs = [rng.uniform(-3, 3) for _ in range(count)]
        for _ in range(5):
            got, wanted = _tree(learner.combine, xs, rng), _pair(xs)
            close(f"m of {count} numbers", got[0], wanted[0], 0.0, hint=0)
            close(f"l of {count} numbers", got[1], wanted[1], 1e-9, hint=1)


def check_empty(learner):
    nothing, some = (-math.inf, 0.0), (2.0, 1.5)
    for name, two in (("empty and some", (nothing, some)), ("some and empty", (some, nothing))):
        got = learner.combine(*two)
        close(name, tuple(got), some, 1e-12, hint=0)
    try:
        got = learner.combine(nothing, nothing)
    except (ValueError, OverflowError) as error:
        raise Wrong(f"two empty parts end in {error}", 1) from error
    close("two empty parts", tuple(got), nothing, 0.0, hint=1)


def check_large(learner):
    for a, b in (((1000.0, 1.0), (-1000.0, 2.0)), ((-1000.0, 2.0), (1000.0, 1.0)), ((-2000.0, 3.0), (-2000.0, 4.0))):
        try:
            got = learner.combine(a, b)
        except OverflowError as error:
            raise Wrong("an exponential overflows for a maximum of 1000", 0) from error
        m = max(a[0], b[0])
        close("l of far-apart parts", got[1], a[1] * (a[0] == m) + b[1] * (b[0] == m), 1e-12, hint=0)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)", "a[1] + b[1]", "whole", 1),
    ("m = max(a[0], b[0])", "m = a[0]", "whole", 0),
    ("math.exp(b[0] - m)", "math.exp(m - b[0])", "whole", 1),
    ("    if m == -math.inf:\n        return m, 0.0\n", "", "empty", 1),
    ("return m, a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)",
     "return m, (a[1] * math.exp(a[0]) + b[1] * math.exp(b[0])) / math.exp(m)", "large", 0),
]
