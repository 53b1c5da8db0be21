"""Laws of the best policy: the highest held-out score within a KL wins, whatever came after, resumed or not."""

import math
from dataclasses import replace

import pytest
import torch
from letters import Letters, bare
from mutants import Mutant
from test_train_ppo import CONFIG, QUESTIONS, a_model, a_reward_model, a_run, same, trained

from minillama.evaluate.diagnosis import describe
from minillama.rlhf import best_policy
from minillama.rlhf.best_policy import ANSWERS, BestPolicy
from minillama.rlhf.train_ppo import train_ppo

ASKED = ["e?", "ff"]


def a_best(policy, prompts=((1, 3),), **changes):
    run = a_run(a_model(), **changes)
    run.policy = policy
    return BestPolicy(run, list(prompts), Letters.eos_id)


def test_the_highest_score_within_twice_the_target_is_put_back_and_the_first_in_any_case():
    policy = torch.nn.Linear(1, 1, bias=False)
    for offers, wanted in (
            ([(0, 1.0, 0.0)], 0), ([(0, 1.0, 9.0), (5, 0.5, 1.0)], 0), ([(0, 1.0, 0.0), (5, 2.0, 6.0)], 5),
            ([(0, 1.0, 0.0), (5, 2.0, 6.5)], 0), ([(0, -1.0, 0.0), (5, 2.0, 1.0), (10, 1.5, 1.0)], 5),
            ([(0, -2.0, 0.0), (5, -1.0, 1.0), (10, math.nan, 1.0)], 5)):
        best = a_best(policy, kl_target=3.0)
        for iteration, score, kl in offers:
            torch.nn.init.constant_(policy.weight, iteration)
            best.keep_if_best(iteration, score, kl)
        torch.nn.init.constant_(policy.weight, 99)
        best.put_back()
        assert policy.weight.item() == best.numbers[1] == wanted
    assert a_best(policy, kl_coefficient=0.0).limit == a_best(policy, kl_target=0.0).limit == math.inf


def with_exams(monkeypatch, found, config=CONFIG, **options):
    """A run whose exams find these (score, KL), one after another -> its policy's weights, the history, and the weights
    at each exam."""
    left, seen = iter(found), {}

    def told(experience):
        if len(experience.score_B) < ANSWERS:
            return describe(experience)
        seen[len(seen)] = {name: x.clone() for name, x in policy.state_dict().items()}
        return dict(zip(("score", "kl"), next(left), strict=True))

    policy = a_model()
    monkeypatch.setattr(best_policy, "describe", told)
    return *trained(policy, config, asked=ASKED, **options), seen


def test_a_run_that_falls_off_ends_as_it_was_at_its_best(monkeypatch):
    config = replace(CONFIG, iterations=12)
    weights, history, seen = with_exams(monkeypatch, [(0.0, 0.0), (1.0, 2.0), (0.5, 2.0), (9.0, 12.5)], config)
    assert [row["kept"] for row in history if "kept" in row] == [0, 5, 5, 5]
    assert same(weights, seen[1]) and not same(weights, seen[3])
    weights, _, seen = with_exams(monkeypatch, [(0.0, 0.0)] + 3 * [(-1.0, 1.0)], config)
    assert same(weights, a_model().state_dict()), "no exam was better than the first: the policy as it began"


def test_without_exams_the_last_policy_is_the_result():
    one, two = trained(a_model()), trained(a_model(), asked=())
    assert same(one[0], two[0]) and "held_out_score" not in one[1][-1]


def test_exams_change_nothing_that_is_learned():
    _, plain = trained(a_model())
    _, examined = trained(a_model(), asked=ASKED)
    own = ("held_out_score", "held_out_kl", "kept")
    assert [{k: v for k, v in row.items() if k not in own} for row in examined] == plain
    assert examined[0]["held_out_kl"] == 0.0 and examined[-1]["held_out_kl"] != 0.0


def test_the_best_of_a_run_that_was_stopped_is_not_forgotten(monkeypatch, tmp_path):
    config = replace(CONFIG, iterations=5, checkpoint_every=5)
    weights, _, _ = with_exams(monkeypatch, [(0.0, 0.0), (1.0, 2.0)], config, folder=tmp_path)
    longer = replace(config, iterations=6)
    resumed, history, _ = with_exams(monkeypatch, [(0.5, 2.0)], longer, folder=tmp_path, resume=True)
    assert same(weights, resumed) and history[-1]["kept"] == 5
    with pytest.raises(ValueError, match="cannot resume: prompt_tokens"):
        train_ppo(a_model(), a_reward_model(), Letters(), QUESTIONS, longer, bare, progress=False, folder=tmp_path,
                  resume=True)


MUTANTS = [
    Mutant("minillama.rlhf.best_policy", "score > self.numbers[0]", "score >= -9",
           test_the_highest_score_within_twice_the_target_is_put_back_and_the_first_in_any_case),
    Mutant("minillama.rlhf.best_policy", "kl <= self.limit and", "",
           test_the_highest_score_within_twice_the_target_is_put_back_and_the_first_in_any_case),
]
