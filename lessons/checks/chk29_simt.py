"""Checks of exercise 29: the sum under several orders of threads, with barriers that all reach, in halving steps; and
two CUDA kernels, by values, guards and requests."""

import math
import random

import torch

from minillama.course.exercise import Wrong, close, on_gpu

HINTS = {
    "sum": (
        "First every thread puts its own element into shared memory; a barrier; then thread i adds what thread "
        "i + half holds.",
        "half starts at n / 2 and is halved until it is 0; only threads with i < half add.",
        "In the end the sum is in shared[0], and thread 0 carries it to out[0].",
    ),
    "barriers": (
        "All threads must reach every barrier: a `yield` inside `if i < half` is reached by some only.",
        "Every thread goes through the same number of steps, at work or not.",
    ),
    "order": (
        "Somebody reads what somebody else has not written yet. Between which two lines does nobody wait?",
        "There is a barrier after the elements are laid down, and one after every halving.",
    ),
    "steps": (
        "Between two barriers a thread may read two numbers: its own, and that of thread i + half.",
    ),
    "scale": (
        "Which elements does thread 0 of block 1 take? The number of a thread within its block is not enough.",
        "i = blockIdx.x * blockDim.x + threadIdx.x, and y[i] = a * x[i] + shift.",
        "The last block may have more threads than there are elements left. Which of them must do nothing?",
        "n / 128 rounds down. What becomes of the rest?",
    ),
    "add_row": (
        "Each thread has one element: its column from the .x numbers, its row from the .y numbers.",
        "Element (r, c) is number r * C + c in memory; the added number depends on the column alone.",
        "Two guards: a block may stand out beyond the last column, and beyond the last row.",
    ),
    "requests": (
        "The 32 lanes of a warp are threads with neighbouring threadIdx.x. Let them take neighbouring columns.",
    ),
}
AFTER = {"requests": "add_row"}  # what is counted must first be right
SIZES = (1, 2, 8, 64)


class Counted(list):
    """A list that adds to reads[0] how many of its numbers are read."""

    def __init__(self, numbers, reads):
        super().__init__(numbers)
        self.reads = reads

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.reads[0] += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self):
        self.reads[0] += len(self)
        return super().__iter__()


def _run(kernel, order, x, most_reads=math.inf):
    """The sum that the kernel leaves, or Wrong where threads do not reach the same barriers."""
    n, out, reads = len(x), [None], [0]
    x, shared = Counted(x, reads), Counted([None] * n, reads)
    running = {i: kernel(i, n, shared, x, out) for i in order}
    for _ in range(4 * n + 8):
        ended = []
        for i, thread in running.items():
            reads[0] = 0
            try:
                next(thread)
            except StopIteration:
                ended.append(i)
            if reads[0] > most_reads:
                raise Wrong(f"of {n} threads, thread {i} reads {reads[0]} numbers between two barriers", 0)
        if len(ended) == len(running):
            return out[0]
        if ended:
            raise Wrong(f"of {n} threads {len(ended)} ended while the others wait at a barrier", 0)
    raise Wrong(f"with {n} threads there is no end of barriers", 1)


def _orders(n):
    shuffled = list(range(n))
    random.Random(n).shuffle(shuffled)
    return {"forward": list(range(n)), "backward": list(range(n))[::-1], "shuffled": shuffled}


def check_barriers(learner):
    for n in SIZES:
        for order in _orders(n).values():
            try:
                _run(learner.block_sum, order, [1] * n)
            except TypeError:
                pass  # something was read too early, which the next checks look at


def check_sum(learner):
    for n in SIZES:
        x = [3 * i * i + 1 for i in range(n)]
        answers = []
        for order in _orders(n).values():
            try:
                answers.append(_run(learner.block_sum, order, list(x)))
            except TypeError:
                answers.append("None read")
        if sum(x) not in answers:
            raise Wrong(f"the sum of {n} elements is {answers[0]}, wanted {sum(x)}", 2 if answers[0] is None else 1)


def check_order(learner):
    for n in SIZES:
        x = [3 * i * i + 1 for i in range(n)]
        for name, order in _orders(n).items():
            try:
                got = _run(learner.block_sum, order, list(x))
            except TypeError as error:
                raise Wrong(f"with {n} threads run {name}, a thread reads an empty place", 0) from error
            if got != sum(x):
                raise Wrong(f"with {n} threads run {name} the sum is {got}, wanted {sum(x)}", 1)


def check_steps(learner):
    for n in SIZES:
        _run(learner.block_sum, range(n), list(range(n)), most_reads=2)


def check_scale(learner):
    for n in (128, 1000, 1, 129):
        x, y = torch.randn(n), torch.zeros(n)
        on_gpu(learner, "scale", x, y, n, 2.5, 0.75, hints={"race": 0, "out of bounds": 2})
        full = n // 128 * 128  # the elements of full blocks
        if full < n and torch.allclose(y[:full], 2.5 * x[:full] + 0.75, atol=1e-6) and not y[full:].any():
            raise Wrong(f"of {n} elements the last {n % 128} are not written", 3)
        close(f"y of {n} elements", y, 2.5 * x + 0.75, 1e-6, hint=1 if n == 128 else 0)


def check_add_row(learner):
    for R, C in ((8, 32), (16, 32), (8, 64), (11, 32), (8, 45), (1, 1), (19, 70)):
        x, row, y = torch.randn(R, C), torch.randn(C), torch.zeros(R, C)
        on_gpu(learner, "add_row", x, row, y, R, C, hints={"race": 2 if C % 32 else 0, "out of bounds": 2})
        close(f"y of {R} rows and {C} columns", y, x + row, 1e-6, hint=2 if R % 8 or C % 32 else 1 if R == 8 else 0)


def check_requests(learner):
    x, row, y = torch.randn(16, 64), torch.randn(64), torch.zeros(16, 64)
    profile = on_gpu(learner, "add_row", x, row, y, 16, 64)
    for name, counts in (("load", profile.global_load), ("store", profile.global_store)):
        if counts.sectors_per_request > 4:
            raise Wrong(f"a {name} of a warp touches {counts.sectors_per_request:.1f} sectors of 32 bytes, not 4", 0)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("            shared[i] = shared[i] + shared[i + half]\n        yield",
     "            shared[i] = shared[i] + shared[i + half]\n            yield", "barriers", 0),
    ("    yield  # all elements are there\n", "", "order", 0),
    ("        yield  # outside the branch: the others wait too\n", "", "order", 1),
    ("half = n // 2", "half = n // 4", "sum", 1),
    ("        out[0] = shared[0]\n", "        pass\n", "sum", 2),
    ("        out[0] = shared[0]\n", "        out[0] = sum(x)\n", "steps", 0),
    ("        if i < half:\n            shared[i] = shared[i] + shared[i + half]\n        yield",
     "        shared[i] = sum(x)\n        yield", "steps", 0),
    ("        out[0] = shared[0]\n", "        out[0] = sum(shared)\n", "sum", 1),
    ("  const int i = blockIdx.x * blockDim.x + threadIdx.x;", "  const int i = threadIdx.x;", "scale", 0),
    ("  if (i < n) y[i]", "  y[i]", "scale", 2),
    ("  if (i < n) y[i]", "  if (i <= n) y[i]", "scale", 2),
    ("= a * x[i] + shift", "= a * (x[i] + shift)", "scale", 1),
    ("return (n + 127) / 128", "return n / 128 > 0 ? n / 128 : 1", "scale", 3),
    ("  const int c = blockIdx.x * blockDim.x + threadIdx.x;", "  const int c = threadIdx.x;", "add_row", 1),
    ("  const int r = blockIdx.y * blockDim.y + threadIdx.y;", "  const int r = threadIdx.y;", "add_row", 0),
    ("+ row[c]", "+ row[r]", "add_row", 1),
    ("x[r * C + c] + row", "x[c * R + r] + row", "add_row", 1),
    ("  if (r < R && c < C)", "  if (r < R)", "add_row", 2),
    ("  if (r < R && c < C)", "  if (c < C)", "add_row", 2),
    ("  const int c = blockIdx.x * blockDim.x + threadIdx.x;\n  const int r = blockIdx.y * blockDim.y + threadIdx.y;",
     "  const int t = threadIdx.y * 32 + threadIdx.x;\n"
     "  const int c = blockIdx.x * 32 + t / 8, r = blockIdx.y * 8 + t % 8;", "requests", 0),
]
