"""Checks of exercise 13: top-p on exact fractions and random distributions, drawing at and between the edges."""

import torch

from minillama.course.exercise import Wrong, close

HINTS = {
    "nucleus": (
        "The piece that carries the sum over c stays too: which sum must still be below c, with or without it?",
        "Sort, decide, and bring each decision back to the place of its piece.",
        "What stays must sum to 1 again.",
    ),
    "ties": (
        "A threshold on the probability itself cannot part two equal pieces; a place in the sorted order can.",
        "A plain sort may swap equal pieces; ask it to be stable.",
    ),
    "draw": (
        "At a u that equals the running sum, the next piece begins: the sum must be greater than u.",
        "A piece of probability 0 takes no room: the running sum does not move there.",
        "If u lies above the sum of all, go back to the last piece with a chance, not to the last piece.",
    ),
}


def _nucleus(probabilities, c):
    kept, mass = [0.0] * len(probabilities), 0.0
    for i in sorted(range(len(kept)), key=lambda i: (-probabilities[i], i)):
        if mass >= c:
            break
        kept[i] = probabilities[i]
        mass += probabilities[i]
    return [value / sum(kept) for value in kept]


def check_nucleus(learner):
    cases = [([1.0], 0.5), ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.75), ([0.125, 0.5, 0.375], 0.51),
             ([0.125, 0.5, 0.375], 1.0), ([0.25, 0.75], 0.01)]
    cases += [(torch.rand(n, dtype=torch.float64).softmax(0).tolist(), c) for n, c in ((7, 0.3), (64, 0.9))]
    for values, c in cases:
        for dtype in (torch.float64, torch.float32):
            p = torch.tensor(values, dtype=dtype)
            wanted = torch.tensor(_nucleus(values, c), dtype=dtype)
            got = learner.top_p(p.clone(), c)
            if torch.is_tensor(got) and got.shape == p.shape:
                if abs(got.sum().item() - 1) > 1e-5:
                    raise Wrong(f"top_p({values[:5]}, {c}) sums to {got.sum():.4f}", 2)
                few = (got > 0).sum() != (wanted > 0).sum()
            else:
                few = False
            close(f"top_p({values[:5]}, {c})", got, wanted, 1e-6, hint=0 if few else 1)


def check_ties(learner):
    quarter = torch.full((4,), 0.25, dtype=torch.float64)
    many = torch.full((64,), 1 / 64, dtype=torch.float64)
    mixed = torch.tensor([0.125, 0.25, 0.125, 0.25, 0.25], dtype=torch.float64)
    for p, c in ((quarter, 0.5), (quarter, 0.26), (mixed, 0.5), (mixed, 0.8), (many, 0.25)):
        got = learner.top_p(p.clone(), c)
        wanted = torch.tensor(_nucleus(p.tolist(), c), dtype=p.dtype)
        counted = (got > 0).sum() == (wanted > 0).sum()
        close(f"top_p of {len(p)} pieces with ties, c = {c}", got, wanted, 1e-9, hint=1 if counted else 0)


def check_draw(learner):
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.1, 0.25, 0.3, 0.74, 0.75, 0.99], dtype=torch.float64)
    got = learner.draw(p, u)
    if torch.is_tensor(got) and (got < len(p)).all() and (p[got] == 0).any():
        raise Wrong(f"u = {u.tolist()} drew {got.tolist()}, and p of one of these is 0", 1)
    close("pieces drawn", got, torch.tensor([1, 1, 3, 3, 3, 4, 4]), 0.0, hint=0)
    close("one piece, one u", learner.draw(torch.ones(1), torch.zeros(1)), torch.tensor([0]), 0.0, hint=0)
    short = torch.tensor([0.5, 0.4999, 0.0])  # the sum of all is below u
    close("u above the sum of all", learner.draw(short, torch.tensor([0.99995])), torch.tensor([1]), 0.0, hint=2)


WRONG = [
    ("(before < c)", "(before + values <= c)", "nucleus", 0),  # drops the piece that crosses c
    ("kept[order] = values * (before < c)", "kept = values * (before < c)", "nucleus", 1),
    ("kept / kept.sum()", "kept", "nucleus", 2),
    ("values * (before < c)", "values * (values >= values[(before < c).sum() - 1])", "ties", 0),  # keeps all ties
    ("probabilities.sort(descending=True, stable=True)",
     "(lambda s: (s[0].flip(0), s[1].flip(0)))(probabilities.sort(stable=True))", "ties", 1),  # later ids first
    ("u, right=True", "u", "draw", 1),  # not greater, but greater or equal
    (".clamp(max=last)", ".clamp(max=len(probabilities) - 1)", "draw", 2),
    ("(before < c)", "(before <= c)", "nucleus", 0),
    ("values.cumsum(0) - values", "values.cumsum(0)", "nucleus", 0),
    ("kept / kept.sum()", "kept / kept.max()", "nucleus", 2),
    ("u, right=True", "1 - u, right=True", "draw", 0),
]
