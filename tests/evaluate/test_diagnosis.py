"""Laws of the diagnosis: each thing that goes wrong is named at its border, with its numbers and a flag that exists."""

import re

import pytest
from mutants import Mutant

from minillama.cli.command_line import build_parser
from minillama.evaluate.diagnosis import diagnose, diagnose_reward, diagnose_tuning, require_ends, summary, tell_news
from minillama.rlhf.preferences import Pair
from minillama.rlhf.train_ppo import PPOConfig
from minillama.train.records import Encoded

CONFIG = PPOConfig(lr=1e-3, kl_target=3.0, max_new_tokens=40)
FINE = {"kl": 3.0, "entropy": 0.9, "distinct": 1.0, "ended": 1.0, "updates": 4, "score": 0.0}


def found(last=None, first=None, rounds=4, config=CONFIG):
    """Names and sentences for a run whose last row differs so from a fine one, and its first."""
    return diagnose([{**FINE, **(first or {})}, *[{**FINE, **(last or {})}] * (rounds - 1)], config)


@pytest.mark.parametrize(("name", "fine", "wrong", "words"), [
    ("KL", {"kl": 9.0}, {"kl": 9.5}, "KL is 9.5 nats an answer, and its target 3.*lower --lr than 1.0e-03"),
    ("entropy", {"entropy": 0.3}, {"entropy": 0.29}, "fell from 0.90 to 0.29"),
    ("collapse", {"distinct": 0.7}, {"distinct": 0.65}, "from 100% to 65%"),
    ("endless", {"ended": 0.9}, {"ended": 0.89}, "from 100% to 89%"),
    ("early", {"updates": 2}, {"updates": 1}, "left after 1 of 4 updates"),
    ("unseen", {"score": 0.7, "held_out_score": 0.0}, {"score": 0.8, "held_out_score": 0.0}, r"\+0.80 on what"),
])
def test_what_went_wrong_on_the_way_is_named_beyond_its_bound_and_not_at_it(name, fine, wrong, words):
    assert found(fine) == {}
    assert list(found(wrong)) == [name] and re.search(words, found(wrong)[name])


def test_an_exam_is_held_against_the_practice_of_its_own_iteration():
    rows = [{**FINE, "held_out_score": 0.0}, {**FINE, "score": 2.0}]
    assert diagnose(rows, CONFIG) == {}


def test_what_was_wrong_at_the_start_is_named():
    assert "60% of the first answers" not in str(found()) and found() == {}
    assert "30% of the first answers were cut off at 40" in found({"ended": 0.7}, {"ended": 0.7})["unended"]
    assert "only 40% of the first answers" in found({"distinct": 0.4}, {"distinct": 0.4})["alike"]


def test_a_score_that_does_not_rise_is_named_after_ten_iterations():
    assert found({"score": 0.25}, rounds=9) == found({"score": 0.35}, rounds=10) == {}
    assert "moves in vain" in found({"score": 0.25}, rounds=10)["flat"]
    assert "hardly moves, try a higher --lr" in found({"score": 0.25, "kl": 0.5}, rounds=10)["flat"]


def test_without_a_penalty_no_kl_is_too_far():
    assert found({"kl": 99.0}, config=PPOConfig(lr=1e-3, kl_coefficient=0.0)) == {}
    assert found({"kl": 99.0}, config=PPOConfig(lr=1e-3, kl_target=0.0)) == {}


def test_every_flag_of_the_advice_is_one_of_the_commands():
    wrong = {"kl": 99.0, "entropy": 0.1, "distinct": 0.1, "ended": 0.1, "updates": 1, "held_out_score": -9.0}
    words = str([found(wrong, rounds=10), found(wrong, {"distinct": 0.1, "ended": 0.5}),
                 found({"kl": 0.1}, rounds=10), *map(diagnose_tuning, TUNINGS)])
    given = "ppo --model m --reward r --prompts p --out o".split(), "sft --model m --data d --out o".split()
    known = {f"--{name.replace('_', '-')}" for line in given for name in vars(build_parser(line[0]).parse_args(line))}
    flags = set(re.findall(r"--[a-z][a-z-]+", words))
    assert len(flags) >= 7 and flags <= known, flags - known


def test_each_thing_is_told_once(capsys):
    told = set()
    for _ in range(3):
        tell_news([FINE, {**FINE, "kl": 30.0}], CONFIG, told)
    assert capsys.readouterr().err.count("iteration 2: KL is 30.0") == 1 and told == {"KL"}


def losses(*values):
    return [{"step": i, "held_out_loss": value} for i, value in enumerate(values)] + [{"step": 9, "loss": 1.0}]


TUNINGS = [losses(2.0, 1.0, 2.5), losses(2.0, 1.5, 1.0), losses(2.0, 0.5, 1.0)]


def test_fine_tuning_that_did_harm_stopped_early_or_learned_by_heart_is_told_apart():
    assert "rose from 2.000 to 2.500" in diagnose_tuning(TUNINGS[0])
    assert "still falling (1.500 to 1.000)" in diagnose_tuning(TUNINGS[1])
    assert "was 0.500 and is 1.000" in diagnose_tuning(TUNINGS[2])
    assert diagnose_tuning(losses(2.0, 1.02, 1.0)) == diagnose_tuning(losses(2.0, 1.0, 1.02)) == ""


def test_a_reward_model_is_told_from_a_coin_from_one_that_knows_by_heart_and_from_contradicting_labels():
    assert "a coin" in diagnose_reward(0.59, 100, 0.9) and "a coin" not in diagnose_reward(0.61, 100, 0.9)
    assert "by heart" in diagnose_reward(0.7, 100, 0.9) and "contradict" in diagnose_reward(0.7, 100, 0.8)
    assert diagnose_reward(0.76, 100, 0.95) == ""
    few, many = ([Pair("q", f"{i}", "no") for i in range(n)] for n in (999, 1000))
    assert "--epochs 2" in diagnose_reward(0.7, 100, 0.8, few)
    assert "before more epochs" in diagnose_reward(0.7, 100, 0.8, many)


def test_answers_of_which_most_do_not_end_within_the_context_are_refused():
    assert require_ends([Encoded(["a", "b"], 1, 0), Encoded(["c"], 0, 1)], 64) == [["a", "b"], ["c"]], "half end"
    for parts in ([Encoded(["a", "b"], 1, 0), Encoded(["c"], 0, 2)], [Encoded(["a", "b"], 2, 0), Encoded(["c"], 1, 2)]):
        cut = 3 if parts[0].cut == 1 else 5
        with pytest.raises(ValueError, match=f"{cut} of 5 answers do not end within the 64 tokens"):
            require_ends(parts, 64)


def test_the_summary_is_of_the_policy_that_was_kept():
    rows = [{"score": 0.0, "kl": 0.0, "held_out_score": 0.1, "held_out_kl": 0.0, "kept": 0}, {"score": 1.0, "kl": 2.0},
            {"score": 2.0, "kl": 3.0, "held_out_score": 1.5, "held_out_kl": 2.5, "kept": 3},
            {"score": 1.0, "kl": 9.0, "held_out_score": 1.0, "held_out_kl": 9.5, "kept": 3}]
    assert summary(rows, 7) == ("score +0.10 -> +1.50 on 7 held-out prompts, 2.5 nats from the start, after iteration "
                                "3 of 4")
    assert summary(rows, 0) == "score +0.00 -> +1.00, 9.0 nats from the start"


MUTANTS = [
    Mutant("minillama.evaluate.diagnosis", "> 3 * config.kl_target", "> 2 * config.kl_target", lambda:
           test_what_went_wrong_on_the_way_is_named_beyond_its_bound_and_not_at_it(
               "KL", {"kl": 9.0}, {"kl": 9.5}, "KL is 9.5")),
    Mutant("minillama.evaluate.diagnosis", "len(labels) < FEW_PAIRS", "len(labels) < 99",
           test_a_reward_model_is_told_from_a_coin_from_one_that_knows_by_heart_and_from_contradicting_labels),
    Mutant("minillama.evaluate.diagnosis", "len(part.sequences) + part.left_out", "len(part.sequences)",
           test_answers_of_which_most_do_not_end_within_the_context_are_refused),
    Mutant("minillama.evaluate.diagnosis", "told.add(name)", "told", lambda: differs_twice()),
    Mutant("minillama.evaluate.diagnosis", "rows[-1][\"kept\"], 1)", "0, 1)",
           test_the_summary_is_of_the_policy_that_was_kept),
]


def differs_twice():
    told = set()
    tell_news([FINE, {**FINE, "kl": 30.0}], CONFIG, told)
    assert told
