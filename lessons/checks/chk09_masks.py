"""Checks of exercise 09: the mask against its definition, the positions against the library's rows."""

import random

import torch

from minillama.course.exercise import Wrong, close
from minillama.train.blank_infilling import cut_out

HINTS = {
    "mask": (
        "Ask it for one pair first: may token t see token s? Who may see part A?",
        "Everybody sees part A, s < a. What more does a token of B see?",
        "Compare a row of places s with a column of places t: s <= t. Join the two conditions with |.",
    ),
    "positions": (
        "How long is part A? Each span leaves one mask token in it.",
        "A mask stands where its span began, less what earlier spans have shortened the text by: length - 1 each.",
        "Part B has length + 1 tokens for each span: r runs from 1 for the start token to length + 1.",
    ),
}


def check_mask(learner):
    for a, T in ((1, 1), (3, 3), (2, 5), (5, 9), (0, 4)):
        wanted = torch.tensor([[s < a or s <= t for s in range(T)] for t in range(T)])
        got = learner.glm_mask(a, T)
        if torch.is_tensor(got) and got.shape == wanted.shape:
            if got[:a, a:].any():
                raise Wrong(f"a = {a}, T = {T}: a token of part A sees part B, which holds the answer", 0)
            if not got[:, :a].all():
                raise Wrong(f"a = {a}, T = {T}: not every token sees all of part A", 1)
        close(f"mask for a = {a}, T = {T}", got, wanted, 0.0, hint=2)


def check_positions(learner):
    for n, spans in ((3, [(1, 1)]), (6, [(2, 1)]), (6, [(1, 3)]), (6, [(2, 1), (4, 2)]), (9, [(0, 2), (4, 3), (8, 1)]),
                     (4, [(0, 4)])):
        wanted = ordered(cut_out(range(n), spans, 0, 1, 2, random.Random(0)), spans)
        got = list(map(tuple, learner.two_positions(n, spans)))
        if len(got) != len(wanted):
            raise Wrong(f"n = {n}, spans {spans}: {len(got)} pairs, expected {len(wanted)}",
                        0 if [r for _, r in got].count(0) != [r for _, r in wanted].count(0) else 2)
        if [r for _, r in got] != [r for _, r in wanted]:
            raise Wrong(f"n = {n}, spans {spans}: r is {[r for _, r in got]}, expected {[r for _, r in wanted]}", 2)
        if got != wanted:
            raise Wrong(f"n = {n}, spans {spans}: p is {[p for p, _ in got]}, expected {[p for p, _ in wanted]}", 1)


def ordered(row, spans):
    """The pairs of a row of the library's, whose part B stands in any order, with the spans in ascending order."""
    return row.positions[:row.split] + sorted(row.positions[row.split:])


WRONG = [
    ("(places[None, :] < a) | (places[None, :] <= places[:, None])", "(places[None, :] <= places[:, None])", "mask", 1),
    ("(places[None, :] < a) | (places[None, :] <= places[:, None])", "torch.ones(T, T, dtype=torch.bool)", "mask", 0),
    ("<= places[:, None]", "< places[:, None]", "mask", 2),
    ("n - cut + len(spans)", "n", "positions", 0),
    ("range(1, length + 2)", "range(length + 1)", "positions", 2),
    ("range(1, length + 2)", "range(1, length + 1)", "positions", 2),
    ("moved += length - 1", "moved += length", "positions", 1),
    ("(start - moved, r)", "(start, r)", "positions", 1),
    ("(places[None, :] < a)", "(places[None, :] <= a)", "mask", 0),
    ("<= places[:, None]", ">= places[:, None]", "mask", 0),
    ("n - cut + len(spans)", "n - cut", "positions", 0),
    ("moved += length - 1", "moved = length - 1", "positions", 1),
    ("(start - moved, r)", "(start - moved + r, r)", "positions", 1),
]
