"""Checks of exercise 29: the sum under several orders of threads, with barriers that all reach, in halving steps."""

import math
import random

from minillama.course.exercise import Wrong

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
}
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
]
