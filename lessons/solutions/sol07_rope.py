"""Solution of exercise 07: RoPE in the half-split layout, and the way between the two layouts."""

import torch


def turn_half_split(x, angles):
    """(a, b) -> (a cos - b sin, b cos + a sin), where a is the first half of x and b the second. Returns (..., d)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def to_half_split(rows, n_heads):
    """Rows (head, pair, a or b, ...) become (head, a or b, pair, ...). Same shape."""
    width = rows.shape[0] // n_heads
    pairs = rows.reshape(n_heads, width // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def to_interleaved(rows, n_heads):
    """Rows (head, a or b, pair, ...) become (head, pair, a or b, ...). Same shape."""
    width = rows.shape[0] // n_heads
    halves = rows.reshape(n_heads, 2, width // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
