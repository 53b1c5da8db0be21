"""Checks of exercise 07: the half-split turn against complex numbers, the reordering against the library's scores."""

import torch

from minillama.course.exercise import Wrong, close
from minillama.rope import half_split_order

HINTS = {
    "turn": (
        "Which two entries are one arrow here? Cut x into its first and its second half.",
        "Turning the arrow (a, b) by an angle: the new a is a cos - b sin, the new b is b cos + a sin.",
        "All first entries stay in the first half of the result: the halves are joined, not zipped.",
    ),
    "half_split": (
        "Each head keeps its own rows: no row may move from one head to another.",
        "Inside a head of 6 rows, the new order is 0, 2, 4, 1, 3, 5.",
        "View the rows as (head, pair, a or b, rest): which two of these axes have to change places?",
    ),
    "interleaved": (
        "It must undo to_half_split: there and back is where you started.",
        "Inside a head of 6 rows, the new order is 0, 3, 1, 4, 2, 5. Doing to_half_split twice is not the way back.",
        "View the rows as (head, a or b, pair, rest), and let the same two axes change places.",
    ),
}

SHAPES = [(1, (2,)), (1, (6, 5)), (3, (12, 7)), (3, (18,)), (2, (16, 3))]  # heads, shape of the rows


def check_turn(learner):
    for shape in ((2,), (1, 4), (3, 10), (2, 3, 6)):
        x = torch.randn(shape, dtype=torch.float64)
        angles = torch.randn(*shape[:-1], shape[-1] // 2, dtype=torch.float64) * 3
        a, b = x.chunk(2, dim=-1)
        turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
        wanted = torch.cat([turned.real, turned.imag], dim=-1)
        got = learner.turn_half_split(x, angles)
        backwards = torch.complex(a, b) * torch.polar(torch.ones_like(angles), -angles)
        if torch.is_tensor(got) and got.shape == x.shape:
            if torch.allclose(got, torch.cat([backwards.real, backwards.imag], dim=-1)):
                raise Wrong("the arrows turn the wrong way: a positive angle turns from a towards b", 1)
            if shape[-1] > 2 and torch.allclose(got, torch.stack([turned.real, turned.imag], -1).flatten(-2)):
                raise Wrong("the turned pairs came back interleaved", 2)
        close(f"x of shape {shape}, turned", got, wanted, 1e-12, hint=0)


def _order(n_heads, shape):
    d = shape[0] // n_heads
    return torch.cat([head * d + half_split_order(d) for head in range(n_heads)])


def check_half_split(learner):
    for n_heads, shape in SHAPES:
        rows = torch.randn(shape, dtype=torch.float64)
        hint = 1 if n_heads == 1 else 0
        close(f"rows of shape {shape}, {n_heads} heads", learner.to_half_split(rows, n_heads),
              rows[_order(n_heads, shape)], 0.0, hint=hint)


def check_interleaved(learner):
    for n_heads, shape in SHAPES:
        rows = torch.randn(shape, dtype=torch.float64)
        order = _order(n_heads, shape)
        wanted = torch.empty_like(rows)
        wanted[order] = rows
        got = learner.to_interleaved(rows, n_heads)
        twice = torch.is_tensor(got) and torch.equal(got, rows[order])
        close(f"rows of shape {shape}, {n_heads} heads", got, wanted, 0.0, hint=1 if twice else 0)


WRONG = [
    ("x.chunk(2, dim=-1)", "(x[..., ::2], x[..., 1::2])", "turn", 0),  # the other layout's pairs
    ("[a * cos - b * sin, b * cos + a * sin]", "[a * cos + b * sin, b * cos - a * sin]", "turn", 1),
    ("torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)",
     "torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)", "turn", 2),
    ("rows.reshape(n_heads, width // 2, 2, *rows.shape[1:])",
     "rows.reshape(1, n_heads * width // 2, 2, *rows.shape[1:])", "half_split", 0),  # all heads as one
    ("rows.reshape(n_heads, width // 2, 2, *rows.shape[1:])",
     "rows.reshape(n_heads, 2, width // 2, *rows.shape[1:])", "half_split", 1),  # the way back
    ("halves = rows.reshape(n_heads, 2, width // 2,", "halves = rows.reshape(n_heads, width // 2, 2,",
     "interleaved", 1),
    ("halves = rows.reshape(n_heads, 2, width // 2,", "halves = rows.reshape(1, 2, n_heads * width // 2,",
     "interleaved", 0),
    ("cos, sin = angles.cos(), angles.sin()", "cos, sin = angles.sin(), angles.cos()", "turn", 0),
    ("[a * cos - b * sin, b * cos + a * sin]", "[a * cos - b * sin, b * cos]", "turn", 0),
    ("return pairs.transpose(1, 2)", "return pairs", "half_split", 1),
    ("return halves.transpose(1, 2)", "return halves", "interleaved", 0),
    ("return halves.transpose(1, 2)", "return halves.flip(1).transpose(1, 2)", "interleaved", 0),
]
