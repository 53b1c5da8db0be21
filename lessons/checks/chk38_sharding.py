"""Checks of exercise 38: P threads in the place of processes, joined by queues that count; each check's wanted numbers
come from whole vectors, without a ring."""

import queue
import threading

import torch

from minillama.course.exercise import Wrong, close

WAIT = 5  # seconds for a message: longer than any thread computes here


class Stopped(Exception):
    """Another thread has failed: no message will come."""


HINTS = {
    "stages": (
        "Stage 1 cuts Adam's means, 8 bytes a weight; stage 2 the gradients, too; stage 3 the weights, too.",
        "A half of a ring sends (P - 1) / P of 4 N bytes: how many halves has each stage?",
        "Both are whole numbers: N is a multiple of P.",
    ),
    "scatter": (
        "5 numbers for 4 processes become 8, so that each has 2; 8 stay 8.",
        "It is the mean: the sum over P.",
        "Send chunk r - 1 first, to the right: then the last one to arrive, finished, is chunk r.",
        "P - 1 steps, and one chunk in each.",
        "g is still needed by who called you: add to a new tensor.",
    ),
    "clipped": (
        "reduce-scatter, update the own piece, all-gather: only the own piece goes to `update`.",
        "A norm is the root of the sum of all squares: each process can give the sum over its own piece.",
        "Clip only where the norm is above max_norm, and clip the mean, not the gradient of the own rows.",
        "Two all-gathers: one number of each process, and the updated pieces.",
    ),
}


class QueueLink:
    """The lesson's Link among threads: a queue for each pair."""

    def __init__(self, rank, queues, failed):
        self.rank, self.size, self.numbers, self._queues, self._failed = rank, len(queues), 0, queues, failed

    def send(self, tensor, to):
        if to != (self.rank + 1) % self.size:
            raise Wrong(f"process {self.rank} of {self.size} sends to {to}: its right neighbour is "
                        f"{(self.rank + 1) % self.size}", 2)
        self.numbers += tensor.numel()
        self._queues[self.rank][to].put(tensor.detach().clone())

    def receive(self, like, source):
        got = self._next(source)
        if got.shape != like.shape:
            raise Wrong(f"process {self.rank} waits for {tuple(like.shape)} numbers and {tuple(got.shape)} come")
        return got

    def _next(self, source):
        for _ in range(20 * WAIT):
            try:
                return self._queues[source][self.rank].get(timeout=0.05)
            except queue.Empty:
                if self._failed:
                    raise Stopped from None
        raise Wrong(f"process {self.rank} of {self.size} waits for process {source}, which sends nothing more", 3)


def _in_threads(function, columns):
    """([what function(link, ...) returned], [numbers that each thread sent])."""
    calls = list(zip(*columns, strict=True))
    P = len(calls)
    queues = [[queue.Queue() for _ in range(P)] for _ in range(P)]
    values, errors = [None] * P, []
    links = [QueueLink(rank, queues, errors) for rank in range(P)]

    def work(rank):
        try:
            values[rank] = function(links[rank], *calls[rank])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(P)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * WAIT)
    if errors:  # a mistake of its own comes before what a thread waited for in vain
        raise min(errors, key=lambda error: isinstance(error, Wrong) + 2 * isinstance(error, Stopped))
    return values, [link.numbers for link in links]


def _all_gather(link, chunk):
    """The true one, for `clipped_step`."""
    chunks = {link.rank: chunk}
    for step in range(link.size - 1):
        link.send(chunks[(link.rank - step) % link.size], (link.rank + 1) % link.size)
        chunks[(link.rank - step - 1) % link.size] = link.receive(chunk, (link.rank - 1) % link.size)
    return torch.cat([chunks[i] for i in range(link.size)])


def _mean_scatter(link, g):
    """The true one, by gathering all: its messages are not counted."""
    before = link.numbers
    mean = _all_gather(link, g[None]).mean(0)
    link.numbers = before
    return mean.chunk(link.size)[link.rank]


def check_stages(learner):
    for stage, held in enumerate((16 * 120, 8 * 120 + 8 * 30, 4 * 120 + 12 * 30, 16 * 30)):
        got = learner.held_and_sent(stage, 120, 4)
        if not isinstance(got, tuple) or len(got) != 2 or not all(isinstance(n, int) for n in got):
            raise Wrong(f"held_and_sent({stage}, 120, 4) is {got!r}, wanted two whole numbers", 2)
        close(f"bytes held in stage {stage}, 120 weights, 4 processes", got[0], held, 0, hint=0)
        sent = 360 * (3 if stage == 3 else 2)
        close(f"bytes sent in stage {stage}, 120 weights, 4 processes", got[1], sent, 0, hint=1)
    close("held_and_sent(3, 35, 7)", learner.held_and_sent(3, 35, 7), (80, 360), 0, hint=1)
    close("held_and_sent(2, 7, 1)", learner.held_and_sent(2, 7, 1), (112, 0), 0, hint=1)


def check_scatter(learner):
    torch.manual_seed(38)
    for P, length in ((2, 2), (3, 6), (4, 12), (4, 5), (3, 1), (1, 3)):
        gradients = torch.randn(P, length)
        before = gradients.clone()
        pieces, sent = _in_threads(learner.mean_scatter, [list(gradients)])
        each = -(-length // P)
        wanted = torch.zeros(P * each)
        wanted[:length] = before.mean(0)
        for rank, (piece, true) in enumerate(zip(pieces, wanted.view(P, each), strict=True)):
            same_shape = getattr(piece, "shape", None) == true.shape
            is_sum = same_shape and torch.allclose(piece, P * true, atol=1e-6)
            close(f"piece {rank} of {length} numbers in {P} processes", piece, true, 1e-6,
                  hint=1 if is_sum else 2 if same_shape and length % P == 0 else 0)
        close(f"numbers that each of {P} processes sends", sent, [(P - 1) * each] * P, 0, hint=3)
        close("g afterwards", gradients, before, 0, hint=4)


def check_clipped(learner):
    torch.manual_seed(39)
    for P, length, max_norm, scale, hint in ((2, 8, 100.0, 1.0, 0), (4, 8, 100.0, 1.0, 0), (4, 8, 0.5, 1.0, 1),
                                             (2, 6, 1.0, 0.05, 2), (1, 3, 0.5, 1.0, 1)):
        w, gradients = torch.randn(length), scale * torch.randn(P, length)
        mean = gradients.mean(0)
        norm = mean.norm()
        wanted = w - 0.1 * (mean * max_norm / norm if norm > max_norm else mean)
        seen = []

        def update(piece, gradient, seen=seen):
            seen.append(tuple(piece.shape))
            return piece - 0.1 * gradient

        def step(link, w, g, max_norm=max_norm, update=update):
            return learner.clipped_step(link, w, g, max_norm, update, _mean_scatter, _all_gather)

        after, sent = _in_threads(step, [[w.clone() for _ in range(P)], list(gradients)])
        if set(seen) != {(length // P,)}:
            raise Wrong(f"update was given pieces of shape {sorted(set(seen))}, wanted ({length // P},)", 0)
        stretched = w - 0.1 * mean * max_norm / norm
        for rank, found in enumerate(after):
            always = norm < max_norm and torch.is_tensor(found) and torch.equal(found.round(decimals=4),
                                                                                stretched.round(decimals=4))
            close(f"weights in process {rank} of {P}, max_norm {max_norm:g}", found, wanted, 1e-6,
                  hint=2 if always else hint)
        each = (P - 1) * (length // P + 1)
        close(f"numbers that each of {P} processes sends beside mean_scatter's", sent, [each] * P, 0,
              hint=1 if sum(sent) < P * each else 3)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("8 * N // (P if stage >= 1", "8 * N // (P if stage >= 2", "stages", 0),
    ("4 * N // (P if stage >= 2", "4 * N // (P if stage >= 1", "stages", 0),
    ("weights = 4 * N // (P if stage >= 3 else 1)", "weights = 4 * N", "stages", 0),
    ("adam = 8 * N", "adam = 4 * N", "stages", 0),
    ("3 if stage == 3 else 2", "stage if stage else 2", "stages", 1),
    ("3 if stage == 3 else 2", "2", "stages", 1),
    ("(P - 1) * 4 * N // P", "4 * N", "stages", 1),
    ("halves * (P - 1) * 4 * N // P", "halves * (P - 1) * 4 * N / P", "stages", 2),
    ("return pieces[r] / P", "return pieces[r]", "scatter", 1),
    ("list(pad(g, (0, -len(g) % P)).view(P, -1))", "list(g.chunk(P))", "scatter", 0),
    ("(0, -len(g) % P)", "(0, P - len(g) % P)", "scatter", 0),
    ("range(1, P)", "range(P)", "scatter", 2),
    ("range(1, P)", "range(2, P)", "scatter", 2),
    ("(r + 1) % P)", "(r - 1) % P)", "scatter", 2),
    ("i = (r - step - 1) % P", "i = (r - step) % P", "scatter", 2),
    ("link.receive(pieces[i], (r - 1) % P)", "link.receive(pieces[i], (r + 1) % P)", "scatter", 3),
    ("return pieces[r] / P", "return pieces[r - 1] / P", "scatter", 2),
    ("all_gather(link, mean.square().sum()[None])", "mean.square()", "clipped", 1),
    ("all_gather(link, mean.square().sum()[None])", "all_gather(link, mean).square()", "clipped", 3),
    ("norm = squares.sum().sqrt()", "norm = squares.sum()", "clipped", 1),
    ("if norm > max_norm:", "if True:", "clipped", 2),
    ("all_gather(link, update(piece, mean))", "update(w, all_gather(link, mean))", "clipped", 0),
    ("(max_norm / norm)", "max_norm", "clipped", 1),
    ("w.chunk(link.size)[link.rank]", "w.chunk(link.size)[0]", "clipped", 0),
]
