"""The solution of lessons/exercises/ex36_roofline.py: intensity, roof, and where one limit meets the other."""

import math


def intensity(M, N, K, weight_bytes, number_bytes):
    """FLOPs over bytes."""
    return 2 * M * N * K / (weight_bytes * N * K + number_bytes * M * (N + K))


def roof(flops_per_byte, peak, bandwidth):
    """The tighter limit."""
    return min(peak, bandwidth * flops_per_byte)


def first_batch(N, K, weight_bytes, number_bytes, peak, bandwidth):
    """Both sides are multiplied by the bandwidth, so that whole numbers stay whole."""
    room = 2 * N * K * bandwidth - peak * number_bytes * (N + K)
    if room <= 0:
        return None
    return max(1, math.ceil(peak * weight_bytes * N * K / room))


def tokens_per_second(batch, weights, weight_bytes, cache_bytes, peak, bandwidth):
    """A batch, over the longer of two times."""
    computing = 2 * batch * weights / peak
    moving = (weights * weight_bytes + batch * cache_bytes) / bandwidth
    return batch / max(computing, moving)
