"""Solution of exercise 13: nucleus sampling with exact ties, and drawing many pieces at once."""

import torch


def top_p(probabilities, c):
    """A piece stays if the likelier ones before it do not reach c yet. Returns (V,)."""
    values, order = probabilities.sort(descending=True, stable=True)  # stable: ties keep the order of their ids
    before = values.cumsum(0) - values
    kept = torch.zeros_like(probabilities)
    kept[order] = values * (before < c)
    return kept / kept.sum()


def draw(probabilities, u):
    """The first place where the running sum exceeds u. Returns (N,) int64."""
    pieces = torch.searchsorted(probabilities.cumsum(0), u, right=True)
    last = probabilities.nonzero().max()
    return pieces.clamp(max=last)
