"""Checks of exercise 31: any tree of combinations gives the maximum and the sum of the whole row; a kernel adds up rows
without a race, in few requests."""

import math
import random

import torch

from minillama.course.exercise import Wrong, close, on_gpu
from minillama.rms_norm import rms_norm

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
    "rows": (
        "Two threads met at a word of shared memory with nothing between them that orders the two. What must stand "
        "between a write and the read by another thread, and does every thread of the block come to it?",
        "Which is the last index of a row, and which threads have none of their own? The guard of a loop decides.",
        "The sum is that of the whole row only if every lane, then every warp, has been added: 32 lanes take 5 "
        "shuffles.",
        "The mean divides by the length of the row, whatever the number of threads; eps stands inside the root.",
    ),
    "requests": (
        "In one request the 32 lanes of a warp read together. Where must lane 1 read if lane 0 reads at i, so that the "
        "32 lie in 4 sectors?",
        "Neighbouring threads take neighbouring elements, and each goes on by the number of threads in the block.",
    ),
    "barriers": ("A barrier in each step of a tree makes seven. Within a warp a shuffle needs none.",),
}
AFTER = {"requests": "rows", "barriers": "rows"}  # what is counted must first be right


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


def check_rows(learner):
    kinds = {"race": 0, "uninitialised": 0, "barrier": 0, "out of bounds": 1}
    for rows, n in ((1, 128), (2, 300), (3, 1), (2, 127)):
        x, y = torch.randn(rows, n), torch.zeros(rows, n)
        on_gpu(learner, "rms_norm", x, y, rows, n, 0.5, hints=kinds)
        close(f"y of {rows} rows of {n}", y, rms_norm(x, torch.ones(n), 0.5), 1e-5, hint=2 if n == 128 else 3)


def check_requests(learner):
    profile = on_gpu(learner, "rms_norm", torch.randn(2, 512), torch.zeros(2, 512), 2, 512, 1e-5)
    for name, counts in (("load", profile.global_load), ("store", profile.global_store)):
        if counts.sectors_per_request > 4:
            raise Wrong(f"a {name} of a warp touches {counts.sectors_per_request:.1f} sectors of 32 bytes, not 4", 0)


def check_barriers(learner):
    profile = on_gpu(learner, "rms_norm", torch.randn(2, 256), torch.zeros(2, 256), 2, 256, 1e-5)
    if profile.barriers > 4:
        raise Wrong(f"each block passes {profile.barriers / 2:g} barriers, at most 2 are needed", 0)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)", "a[1] + b[1]", "whole", 1),
    ("m = max(a[0], b[0])", "m = a[0]", "whole", 0),
    ("math.exp(b[0] - m)", "math.exp(m - b[0])", "whole", 1),
    ("    if m == -math.inf:\n        return m, 0.0\n", "", "empty", 1),
    ("return m, a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)",
     "return m, (a[1] * math.exp(a[0]) + b[1] * math.exp(b[0])) / math.exp(m)", "large", 0),
    ("  __syncthreads();\n", "", "rows", 0),
    ("of_warp[threadIdx.x / 32] = sum;\n  __syncthreads();", "{ of_warp[threadIdx.x / 32] = sum; __syncthreads(); }",
     "rows", 0),
    ("i < n; i += blockDim.x) sum", "i <= n; i += blockDim.x) sum", "rows", 1),
    ("int lanes = 16", "int lanes = 8", "rows", 2),
    ("sum / n", "sum / 128", "rows", 3),
    ("for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i] * row[i];",
     "const int each = (n + 127) / 128, begin = threadIdx.x * each;\n"
     "  for (int i = begin; i < n && i < begin + each; ++i) sum += row[i] * row[i];", "requests", 0),
    ("  for (int lanes = 16;", "  __syncthreads(); __syncthreads();\n  for (int lanes = 16;", "barriers", 0),
]
