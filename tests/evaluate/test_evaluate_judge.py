"""Laws of judging: biases that are planted in a judge are measured, and those of position change no verdict."""

import math
import random

import pytest
import torch
from judge import judge, judge_pair, preference_of, wilson_interval
from letters import Letters
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.transformer import Transformer

QUALITY = {"good": 2.0, "plain": 1.0, "bad": 0.0}


def judge_with(position=0.0, length=0.0):
    """Sees the quality of an answer by its first word, and adds to what stands first, and to each character."""
    def prefers(question, first, second):
        worth = [QUALITY[answer.split()[0]] + length * len(answer) for answer in (first, second)]
        return worth[0] - worth[1] + position

    return prefers


def answers(seed, n=200):
    """Two models' answers; ours is better in 60, theirs in 40 of 100; lengths have nothing to do with it."""
    rng, ours, theirs = random.Random(seed), [], []
    for _ in range(n):
        pair = ["good", "bad"] if rng.random() < 0.6 else ["bad", "good"]
        ours.append(f"{pair[0]}{' x' * rng.randrange(1, 5)}")
        theirs.append(f"{pair[1]}{' x' * rng.randrange(1, 5)}")
    return ["?"] * n, ours, theirs


def test_a_fair_judge_finds_the_share_that_is_better():
    for seed in range(3):
        questions, ours, theirs = answers(seed)
        true = sum(one.startswith("good") for one in ours) / len(ours)
        found = judge(judge_with(), questions, ours, theirs)
        assert found.win_rate == true and found.low < true < found.high and found.ties == 0
        assert found.first_preferred == 0.5


def test_a_planted_position_bias_is_unmasked_and_repaired():
    """A bias of 1 is less than the difference of good and bad, 2: no verdict changes. One of 3 decides all: ties."""
    for seed in range(3):
        questions, ours, theirs = answers(seed)
        right = judge(judge_with(), questions, ours, theirs)
        assert judge(judge_with(position=1), questions, ours, theirs) == right
        blind = judge(judge_with(position=3), questions, ours, theirs)
        assert (blind.win_rate, blind.ties, blind.first_preferred) == (0.5, 1.0, 1.0)
        one_order = [judge_with(position=3)("?", a, b) > 0 for a, b in zip(ours, theirs, strict=True)]
        assert all(one_order), "shown in one order only, ours would have won everywhere"


def test_a_planted_length_bias_is_measured():
    for seed in range(3):
        questions, ours, theirs = answers(seed)
        fair = judge(judge_with(), questions, ours, theirs).longer_preferred
        assert abs(fair - 0.5) < 4 * 0.5 / math.sqrt(140)  # of 200 pairs 3 in 4 are of unequal length
        assert judge(judge_with(length=5.0), questions, ours, theirs).longer_preferred == 1.0
    same = judge(judge_with(), ["?"], ["good x"], ["bad xx"])
    assert math.isnan(same.longer_preferred) and same.win_rate == 1.0


def test_an_answer_against_itself_is_a_tie_and_a_loss_is_a_loss():
    assert judge_pair(judge_with(), "?", "good x", "good x") == (0.5, 0.5, 0)
    assert judge_pair(judge_with(), "?", "bad xyz", "good x") == (0.0, 0.5, 1)
    with pytest.raises(ValueError):
        judge(judge_with(), ["?"], ["good"], [])


def test_any_model_may_be_the_judge_by_the_letter_that_it_finds_likelier():
    class Open(Letters):
        def encode(self, text, bos=False, eos=False):
            return [1] * bos + [3 + ord(letter) % 27 for letter in text]

    torch.manual_seed(0)
    model = Transformer(ModelConfig(8, 1, 2, Letters.vocab_size, hidden_dim=16, max_seq_len=256)).double()
    prefers = preference_of(model, Open())
    assert math.isfinite(prefers("how", "so", "thus")) and prefers("how", "so", "thus") != prefers("how", "thus", "so")


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """3,000 polls of 40: a share of 95 % is known to 0.4 %, and discreteness moves it by 2 %."""
    for share in (0.5, 0.9):
        rng, held = random.Random(0), 0
        for _ in range(3000):
            low, high = wilson_interval(sum(rng.random() < share for _ in range(40)) / 40, 40)
            held += low <= share <= high
        assert 0.92 < held / 3000 < 0.98
    assert wilson_interval(0.0, 5)[0] < 1e-12 and 1 - wilson_interval(1.0, 5)[1] < 1e-12


MUTANTS = [
    Mutant("judge", "prefers(question, theirs, ours)", "prefers(question, ours, theirs)",
           test_a_fair_judge_finds_the_share_that_is_better),
    Mutant("judge", "if ours_preferred[0] == ours_preferred[1] else 0.5", "if True else 0.5",
           test_a_planted_position_bias_is_unmasked_and_repaired),
    Mutant("judge", "(verdict.longer_by > 0)", "(verdict.longer_by < 0)", test_a_planted_length_bias_is_measured),
    Mutant("judge", "z * z / (2 * n), z", "z * z / n, z", test_the_interval_holds_the_truth_as_often_as_it_says),
]
