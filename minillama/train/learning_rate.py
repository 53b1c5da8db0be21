"""The learning-rate schedule: a linear warmup, then half a cosine."""

import math


def learning_rate(step, steps, max_lr, warmup_steps=0, min_lr_ratio=0.1):
    """The rate of step 0, 1, ..., steps - 1: a straight line up to max_lr, then half a cosine down to its 10 %.

    The peak is reached in step warmup_steps - 1, and min_lr_ratio max_lr in the last step (and kept
    after it): arXiv 2302.13971, section 2.3.

    >>> [round(learning_rate(step, 6, 1.0, warmup_steps=2), 3) for step in range(6)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    progress = min(1.0, (step + 1 - warmup_steps) / max(1, steps - warmup_steps))  # 0: peak, 1: last step
    return max_lr * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
