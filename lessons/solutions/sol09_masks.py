"""Solution of exercise 09: GLM's mask, and its two positions."""

import torch


def glm_mask(a, T):
    """s < a or s <= t: for a token of A the second says nothing new. (T, T) bool."""
    places = torch.arange(T)
    return (places[None, :] < a) | (places[None, :] <= places[:, None])


def two_positions(n, spans):
    """A span of `length` tokens leaves one mask behind, so those behind it move to the left by length - 1."""
    cut = sum(length for _, length in spans)
    pairs, moved = [(p, 0) for p in range(n - cut + len(spans))], 0
    for start, length in spans:
        pairs += [(start - moved, r) for r in range(1, length + 2)]
        moved += length - 1
    return pairs
