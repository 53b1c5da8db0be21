"""Laws of standard errors: they are the spread that repeated samples really have."""

import math
import random

import pytest
from mutants import Mutant
from oracles import mean, variance

from minillama.evaluate.standard_error import mean_and_error, paired_difference, ratio_and_error


def test_the_error_is_the_spread_of_the_means_of_many_samples():
    """2,000 samples of 50 coins: the spread of their means is known to 1 / sqrt(2 * 2000) = 1.6 %, the mean error to
    less; 5 standard deviations are 8 %."""
    for seed in range(3):
        rng = random.Random(seed)
        found = [mean_and_error([rng.random() < 0.3 for _ in range(50)]) for _ in range(2000)]
        spread = math.sqrt(variance([one for one, _ in found]))
        assert math.sqrt(mean([error**2 for _, error in found])) == pytest.approx(spread, rel=0.08)


def test_the_error_of_a_share_is_the_one_of_coins():
    for n, right in ((2, 1), (7, 3), (1000, 999), (5, 5)):
        share, error = mean_and_error([1.0] * right + [0.0] * (n - right))
        assert share == right / n
        assert error == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)), abs=1e-15)
    assert math.isnan(mean_and_error([1.0])[1])


def test_a_paired_difference_counts_only_what_the_two_answer_differently():
    """Two models agree on 96 hard and easy items; of four, one has three right and the other one."""
    same = [1.0] * 40 + [0.0] * 56
    ours, theirs = same + [1.0, 1.0, 1.0, 0.0], same + [0.0, 0.0, 0.0, 1.0]
    difference, error = paired_difference(ours, theirs)
    assert difference == pytest.approx(0.02)
    assert error == pytest.approx(math.sqrt((4 - 100 * 0.02**2) / 99 / 100), rel=1e-12)
    assert error < 0.3 * math.hypot(mean_and_error(ours)[1], mean_and_error(theirs)[1])
    with pytest.raises(ValueError):
        paired_difference(ours, theirs[:-1])


def test_the_error_of_a_ratio_is_its_spread_over_many_samples():
    """1,000 samples of 60 documents whose nats follow their bytes: as above 5 standard deviations are 11 %, and to
    first order in 1 / 60 some 2 % more."""
    for seed in range(3):
        rng, found = random.Random(seed), []
        for _ in range(1000):
            wholes = [rng.uniform(50, 150) for _ in range(60)]
            found.append(ratio_and_error([whole * 0.7 + rng.gauss(0, 10) for whole in wholes], wholes))
        spread = math.sqrt(variance([one for one, _ in found]))
        assert mean([one for one, _ in found]) == pytest.approx(0.7, rel=0.01)
        assert math.sqrt(mean([error**2 for _, error in found])) == pytest.approx(spread, rel=0.13)
    assert ratio_and_error([3.0], [4.0])[0] == 0.75 and math.isnan(ratio_and_error([3.0], [4.0])[1])
    assert ratio_and_error([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.0)


MUTANTS = [
    Mutant("minillama.evaluate.standard_error", "part - ratio * whole", "part",
           test_the_error_of_a_ratio_is_its_spread_over_many_samples),
    Mutant("minillama.evaluate.standard_error", "[1] / fmean(wholes)", "[1]",
           test_the_error_of_a_ratio_is_its_spread_over_many_samples),
    Mutant("minillama.evaluate.standard_error", "/ math.sqrt(len(values))", "/ len(values)",
           test_the_error_is_the_spread_of_the_means_of_many_samples),
    Mutant("minillama.evaluate.standard_error", "stdev(values) /", "(sum(values) + stdev(values)) /",
           test_the_error_of_a_share_is_the_one_of_coins),
    Mutant("minillama.evaluate.standard_error", "our - their for", "our + their for",
           test_a_paired_difference_counts_only_what_the_two_answer_differently),
]
