"""The learning-rate schedule: a line up, half a cosine down, and its ends."""

import math

import pytest
from mutants import Mutant

from minillama.train.learning_rate import learning_rate


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (7, 0), (13, 5), (600, 30)])
def test_the_rate_rises_to_its_peak_and_ends_at_a_tenth(steps, warmup):
    rates = [learning_rate(step, steps, 3e-4, warmup) for step in range(steps)]
    assert rates[-1] == pytest.approx(3e-5, rel=1e-12)
    if warmup:
        assert rates[:warmup] == pytest.approx([3e-4 * (i + 1) / warmup for i in range(warmup)], rel=1e-12)
        assert max(rates) == rates[warmup - 1] == pytest.approx(3e-4, rel=1e-12)
    falling = rates[max(warmup - 1, 0):]
    assert all(a > b for a, b in zip(falling, falling[1:], strict=False))
    assert learning_rate(steps + 5, steps, 3e-4, warmup) == rates[-1]


def test_the_fall_is_half_a_cosine():
    """Halfway down it is halfway between its ends, and a quarter of the way (1 + cos 45) / 2 of the drop is left."""
    halfway = learning_rate(9 + 40, 90, 1.0, 10, 0.1)
    quarter = learning_rate(9 + 20, 90, 1.0, 10, 0.1)
    assert halfway == pytest.approx(0.55, rel=1e-12)
    assert quarter == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, rel=1e-12)


MUTANTS = [
    Mutant("minillama.train.learning_rate", "max(1, steps - warmup_steps)", "steps",
           lambda: test_the_rate_rises_to_its_peak_and_ends_at_a_tenth(13, 5)),
    Mutant("minillama.train.learning_rate", "min_lr_ratio + (1 - min_lr_ratio) *", "(1 - min_lr_ratio) *",
           lambda: test_the_rate_rises_to_its_peak_and_ends_at_a_tenth(13, 5)),
    Mutant("minillama.train.learning_rate", "max_lr * (step + 1) / warmup_steps",
           "max_lr * step / warmup_steps",
           lambda: test_the_rate_rises_to_its_peak_and_ends_at_a_tenth(13, 5)),
    Mutant("minillama.train.learning_rate", "math.cos(math.pi * progress)", "1 - 2 * progress",
           test_the_fall_is_half_a_cosine),
]
