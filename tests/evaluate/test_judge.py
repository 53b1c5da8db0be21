"""Laws of judging: biases that are planted in a judge are measured, and those of position change no verdict."""

import math
import random

import pytest
import torch
from letters import Letters
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.evaluate.judge import (
    GRADES,
    both_orders,
    grades,
    judge,
    planted_pairs,
    preferences,
    summarize,
    verdict_of,
    wilson_interval,
)
from minillama.evaluate.likelihood import encode_pair, log_likelihoods
from minillama.transformer import Transformer

QUALITY = {"good": 2.0, "plain": 1.0, "bad": 0.0}


def judge_with(position=0.0, length=0.0):
    """Sees the quality of an answer by its first word, and adds to what stands first, and to each character."""
    def worth(answer):
        return QUALITY[answer.split()[0]] + length * len(answer)

    return lambda shown: [worth(first) - worth(second) + position for _, first, second in shown]


def answers(seed, n=200):
    """Two models' answers; ours is better in 60, theirs in 40 of 100; lengths have nothing to do with it."""
    rng, pairs = random.Random(seed), []
    for _ in range(n):
        words = ["good", "bad"] if rng.random() < 0.6 else ["bad", "good"]
        pairs.append(("?", *(f"{word}{' x' * rng.randrange(1, 5)}" for word in words)))
    return pairs


def test_a_fair_judge_finds_the_share_that_is_better():
    for seed in range(3):
        pairs = answers(seed)
        true = sum(ours.startswith("good") for _, ours, _ in pairs) / len(pairs)
        found = summarize(judge(judge_with(), pairs))
        assert found.win_rate == found.balanced == true and found.low < true < found.high and found.ties == 0
        assert (found.first_preferred, found.changed) == (0.5, 0.0)


def test_a_planted_position_bias_is_unmasked_and_repaired():
    """A bias of 1 is less than the difference of good and bad, 2: no verdict changes. One of 3 decides all: the other
    order turns each verdict round, all are ties, and what both orders say together is the truth."""
    for seed in range(3):
        pairs = answers(seed)
        right = summarize(judge(judge_with(), pairs))
        assert summarize(judge(judge_with(position=1), pairs)) == right
        for position in (3, -3):
            one_order = judge_with(position=position)(pairs)
            assert all((margin > 0) == (position > 0) for margin in one_order), "in one order the place wins everywhere"
            blind = summarize(judge(judge_with(position=position), pairs))
            assert (blind.win_rate, blind.ties, blind.changed) == (0.5, 1.0, 1.0)
            assert blind.first_preferred == (position > 0) and blind.balanced == right.win_rate


def test_a_planted_length_bias_is_measured():
    for seed in range(3):
        fair = summarize(judge(judge_with(), answers(seed))).longer_preferred
        assert abs(fair - 0.5) < 4 * 0.5 / math.sqrt(140)  # of 200 pairs 3 in 4 are of unequal length
        assert summarize(judge(judge_with(length=5.0), answers(seed))).longer_preferred == 1.0
    same = summarize(judge(judge_with(), [("?", "good x", "bad xx")]))
    assert math.isnan(same.longer_preferred) and same.win_rate == 1.0


def test_planted_pairs_tell_what_is_wrong_with_a_judge():
    pairs = [(f"q{i}", answer, "plain") for i, answer in enumerate(["good x", "bad x", "good xx"])]
    planted = planted_pairs(pairs)
    assert planted["stray"][0] == ("q0", "good x", "bad x") and planted["stray"][2] == ("q2", "good xx", "good x")
    assert planted["itself"] == [(question, ours, ours) for question, ours, _ in pairs]
    found = {name: summarize(judge(judge_with(position=0.5, length=0.1), some)) for name, some in planted.items()}
    assert found["itself"].first_preferred == 1.0 and found["itself"].balanced == 0.5
    assert found["repeated"].balanced == 1.0
    fair = {name: summarize(judge(judge_with(), some)) for name, some in planted.items()}
    assert fair["itself"].first_preferred == fair["repeated"].balanced == 0.5
    assert planted_pairs([("q", "", "x")]) == {"itself": [], "repeated": [], "stray": []}


def test_an_answer_against_itself_is_a_tie_and_a_loss_is_a_loss():
    assert judge(judge_with(), [("?", "good x", "good x")]) == [(0.5, 0.5, False, 0.0, 0)]
    assert judge(judge_with(), [("?", "bad xyz", "good x")]) == [(0.0, 0.5, False, -2.0, 1)]
    assert verdict_of("a", "bc", 3.0, 1.0) == (0.5, 1.0, True, 1.0, -1)


class Open(Letters):
    """Any character is a token."""

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [3 + ord(letter) % 27 for letter in text]


def tiny_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(8, 1, 2, Letters.vocab_size, hidden_dim=16, max_seq_len=256)).double()


def test_any_model_may_be_the_judge_by_the_letter_that_it_finds_likelier():
    model, shown = tiny_model(), both_orders([("how", "so", "thus"), ("w{h}o", "me", "{you}")])
    found = preferences(model, Open(), shown)
    assert shown[1] == ("how", "thus", "so") and len(found) == 4 and found[0] != found[1]
    prompt = ("Question: w{h}o\n\nAnswer A: me\n\nAnswer B: {you}\n\n"
              "Which answer is better, A or B? The better answer is")
    a, b = log_likelihoods(model, [encode_pair(Open(), prompt, letter) for letter in (" A", " B")])
    assert found[2] == pytest.approx(a - b, rel=1e-9)


def test_a_grade_is_the_mean_of_all_grades_by_their_likelihood():
    model = tiny_model()
    ours, theirs = grades(model, Open(), [("how", "so"), ("how", "thus")])
    sums = log_likelihoods(model, [encode_pair(
        Open(), "Question: how\n\nAnswer: so\n\nGrade this answer from 1 (useless) to 9 (perfect). The grade is",
        f" {grade}") for grade in range(1, 10)])
    total = sum(map(math.exp, sums))
    assert ours == pytest.approx(sum(g * math.exp(s) / total for g, s in zip(GRADES, sums, strict=True)), rel=1e-9)
    assert 1 < ours < 9 and ours != theirs


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """3,000 polls of 40: a share of 95 % is known to 0.4 %, and discreteness moves it by 2 %."""
    for share in (0.5, 0.9):
        rng, held = random.Random(0), 0
        for _ in range(3000):
            low, high = wilson_interval(sum(rng.random() < share for _ in range(40)) / 40, 40)
            held += low <= share <= high
        assert 0.92 < held / 3000 < 0.98
    assert wilson_interval(0.0, 5)[0] < 1e-12 and 1 - wilson_interval(1.0, 5)[1] < 1e-12


def plant(old, new, law):
    return Mutant("minillama.evaluate.judge", old, new, law)


MUTANTS = [
    plant("(question, theirs, ours))]", "(question, ours, theirs))]", test_a_fair_judge_finds_the_share_that_is_better),
    plant("if ours_preferred[0] == ours_preferred[1] else 0.5", "if True else 0.5",
          test_a_planted_position_bias_is_unmasked_and_repaired),
    plant("(forward - backward) / 2", "forward", test_a_planted_position_bias_is_unmasked_and_repaired),
    plant("(verdict.longer_by > 0)", "(verdict.longer_by < 0)", test_a_planted_length_bias_is_measured),
    plant("z * z / (2 * n), z", "z * z / n, z", test_the_interval_holds_the_truth_as_often_as_it_says),
    plant("math.exp(one - max(ours))", "one - max(ours)", test_a_grade_is_the_mean_of_all_grades_by_their_likelihood),
    plant("pairs[(i + 1) % len(pairs)][1]", "pairs[i][2]", test_planted_pairs_tell_what_is_wrong_with_a_judge),
    plant("sums[::2], sums[1::2]", "sums[1::2], sums[::2]",
          test_any_model_may_be_the_judge_by_the_letter_that_it_finds_likelier),
]
