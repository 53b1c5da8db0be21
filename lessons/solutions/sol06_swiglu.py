"""Solution of exercise 06: how wide LLaMA's feed-forward layer is, and the slope of its bend."""

import torch


def hidden_width(dim, multiple_of=256, multiplier=None):
    """Two thirds of 4 dim, times the multiplier, up to a multiple."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    steps = -(-width // multiple_of)  # division that rounds up
    return steps * multiple_of


def silu_slope(a):
    """(a s)' = s + a s', and s' = s (1 - s) for the sigmoid s."""
    s = torch.sigmoid(a)
    return s + a * s * (1 - s)
