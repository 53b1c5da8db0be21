"""Laws of the label ceiling without a ground truth: what labels of the same two answers say of one another."""

import itertools
import math
import random
from functools import partial

import pytest
from mutants import Mutant

from minillama.evaluate.agreement import agreement, ceiling_of, diagnose_labels
from minillama.evaluate.diagnosis import diagnose_reward
from minillama.rlhf.preferences import Pair


def by_hand(pairs):
    """Every two of the labels, where they are of the same answers to the same prompt."""
    both = [(one, other) for one, other in itertools.combinations(pairs, 2)
            if one.prompt == other.prompt and {*one[1:]} == {*other[1:]}]
    return sum(one == other for one, other in both), len(both)


def labels(n, right, seed, times=2):
    """n questions, each asked so many times, labelled rightly with that probability."""
    rng = random.Random(seed)
    return [Pair(f"{i}", *(("good", "bad") if rng.random() < right else ("bad", "good"))) for i in range(n)
            for _ in range(times)]


def test_labels_of_the_same_two_answers_are_compared_in_either_order():
    rows = [Pair("q", "a", "b")] * 3 + [Pair("q", "b", "a")] * 2 + [Pair("q", "a", "c"), Pair("r", "a", "b")]
    assert agreement(rows) == (4 / 10, 10), "3 + 1 of 10; other answers and other prompts are compared with nothing"
    for seed in range(3):
        rows = labels(9, 0.7, seed, times=3) + labels(5, 0.7, seed + 10)
        agreeing, compared = by_hand(rows)
        assert agreement(rows) == (pytest.approx(agreeing / compared, rel=1e-12), compared)
    share, compared = agreement([Pair("q", "a", "b"), Pair("r", "a", "b")])
    assert math.isnan(share) and compared == 0


@pytest.mark.parametrize("right", [0.5, 0.7, 0.9, 1.0])
def test_the_ceiling_is_the_share_of_labels_that_are_right(right):
    """Exactly from the expectation; and by four standard errors of 20,000 comparisons, through the formula's slope,
    1 / (2 sqrt(2 a - 1)), for three seeds."""
    expected = right**2 + (1 - right) ** 2
    assert ceiling_of(expected) == pytest.approx(right, abs=1e-7)
    if right > 0.5:
        error = math.sqrt(expected * (1 - expected) / 20_000) / (2 * math.sqrt(2 * expected - 1))
        for seed in range(3):
            assert abs(ceiling_of(agreement(labels(20_000, right, seed))[0]) - right) <= 4 * error + 1e-12


def test_contradictions_are_told_with_what_they_leave_and_agreement_is_not():
    told = diagnose_labels(labels(400, 0.75, 0))
    assert told.startswith("of 400 pairs of labels for the same two answers") and "judge who knew the truth" in told
    assert diagnose_labels(labels(400, 1.0, 0)) == diagnose_labels(labels(19, 0.5, 0)) == "", "19 are too few"
    assert diagnose_reward(0.9, 100, 0.9, labels(400, 0.75, 0)) == told and diagnose_reward(0.9, 100, 0.9) == ""
    assert diagnose_reward(0.5, 100, 0.9, labels(400, 0.75, 0)).endswith(told), "beside what else is wrong"


plant = partial(Mutant, "minillama.evaluate.agreement")
COMPARED = test_labels_of_the_same_two_answers_are_compared_in_either_order
MUTANTS = [
    plant("*sorted(answers)", "*answers", COMPARED),
    plant("math.comb(a, 2) + math.comb(b, 2)", "math.comb(a, 2)", COMPARED),
    plant("0.5 + 0.5 * math.sqrt", "0.5 + math.sqrt",
          lambda: test_the_ceiling_is_the_share_of_labels_that_are_right(0.7)),
    plant("compared < LEAST", "compared < 0", test_contradictions_are_told_with_what_they_leave_and_agreement_is_not),
]
