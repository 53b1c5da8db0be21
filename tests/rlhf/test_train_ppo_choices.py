"""Laws of the choices in which published programs of PPO differ: each is computed as it says."""

import itertools
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from letters import Letters, bare
from mutants import Mutant
from test_train_ppo import CONFIG, a_model, a_reward_model, a_run, prompts, same, share_of_a

from minillama.rlhf.experience import judged_places, make_experience
from minillama.rlhf.grpo import GRPO
from minillama.rlhf.rollout import Rollout
from minillama.rlhf.train_ppo import PPOConfig, train_ppo

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def the_numbers():
    """Rollout, scores, log-probabilities of policy and reference, and values, of three answers."""
    generator = torch.Generator().manual_seed(3)
    log_prob, reference, values = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    rollout = Rollout(torch.zeros(3, 7, dtype=torch.int64), torch.cat([torch.ones(3, 2, dtype=torch.bool), MASK], 1),
                      2, torch.ones(3, dtype=torch.bool))
    return rollout, torch.tensor([3.0, -0.5, -4.0], dtype=torch.float64), log_prob, reference, values


def by_hand(config, beta):
    """(advantages, returns) of `the_numbers` in plain Python, {(row, place): number}."""
    _, score, log_prob, reference, values = the_numbers()
    rewards, lengths = {}, MASK.sum(-1).tolist()
    for row, length in enumerate(lengths):
        limit = config.score_limit or math.inf
        paid = min(max(score[row].item(), -limit), limit)
        places = min(length + (config.score_at == "pad"), 5)
        for place in range(places):
            x = (reference[row, place] - log_prob[row, place]).item() if place < length else 0.0
            penalty = {"k1": -x, "k2": x * x / 2, "k3": math.exp(x) - 1 - x}[config.estimator]
            rewards[row, place] = -beta * penalty
            if config.score_at == "every_token" or place == places - 1:
                rewards[row, place] += paid
    if config.whiten_rewards:
        mean, deviation = spread(rewards.values(), config.whitening == "unbiased")
        rewards = {key: (value - mean) / deviation + mean for key, value in rewards.items()}
    advantages, returns = {}, {}
    for row, place in sorted(rewards, reverse=True):
        after = values[row, place + 1].item() if (row, place + 1) in rewards else 0.0
        delta = rewards[row, place] + config.gamma * after - values[row, place].item()
        advantages[row, place] = delta + config.gamma * config.lam * advantages.get((row, place + 1), 0.0)
        returns[row, place] = advantages[row, place] + values[row, place].item()
    if config.whitening != "none":
        acted = {key: value for key, value in advantages.items() if MASK[key]}
        mean, deviation = spread(acted.values(), config.whitening == "unbiased")
        advantages = {key: (value - mean) / deviation for key, value in acted.items()}
    return advantages, returns


def spread(numbers, unbiased):
    numbers = list(numbers)
    mean = sum(numbers) / len(numbers)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - unbiased))


def test_every_choice_gives_the_advantages_that_plain_loops_give():
    for score_at, estimator, limit, whitening, rewards in itertools.product(
            ("eos", "pad", "every_token"), ("k1", "k2", "k3"), (0.0, 2.5), ("none", "biased", "unbiased"),
            (False, True)):
        config = PPOConfig(score_at=score_at, estimator=estimator, score_limit=limit, whitening=whitening,
                           whiten_rewards=rewards, lam=0.9)
        made = make_experience(*the_numbers(), 0.05, config)
        for got, wanted in zip((made.advantages_BA, made.returns_BA), by_hand(config, 0.05), strict=True):
            for key, value in wanted.items():
                assert got[key].item() == pytest.approx(value, rel=1e-6, abs=1e-6), (config, key)


def test_with_the_score_after_the_answer_the_values_learn_that_place_and_the_policy_does_not():
    run, rollout = a_run(a_model(), score_at="pad"), the_numbers()[0]
    assert judged_places(rollout, "pad").sum(-1).tolist() == [4, 2, 5]
    rollout, metrics = run.advance(prompts(run, 0), Letters.eos_id)
    assert metrics["first_ratio"] == 1.0 and math.isfinite(metrics["value_loss"])


def test_the_loss_has_its_cap_and_its_mean():
    plain, capped = (a_run(a_model(), **changes) for changes in ({}, {"ratio_limit": 1.5, "average": "answers"}))
    made = SimpleNamespace(rollout=SimpleNamespace(answer_mask_BA=MASK), log_prob_BA=torch.zeros(3, 5),
                           advantages_BA=-torch.ones(3, 5))
    log_prob = torch.zeros(3, 5)
    log_prob[0, 0] = math.log(4.0)
    assert plain.policy_loss(log_prob, made).item() == pytest.approx((8 + 4.0) / 9)  # nine tokens
    assert capped.policy_loss(log_prob, made).item() == pytest.approx(((2 + 1.5) / 3 + 1 + 1) / 3)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_policy_that_is_kept_is_the_best_or_the_last(keep):
    """With a rule that only gets worse, the best policy is the first one, and the last another."""
    policy, scores = a_model(), iter(range(0, -100, -1))
    config = replace(CONFIG, iterations=2, keep=keep)

    def worse(tokens_BT, mask_BT):
        return next(scores) + share_of_a(tokens_BT, mask_BT)

    reward_model = a_reward_model()
    reward_model.forward = worse
    train_ppo(policy, reward_model, Letters(), ["a?", "b"], config, bare, progress=False, asked=["who?"])
    assert same(policy.state_dict(), a_model().state_dict()) is (keep == "best")


def test_a_learner_without_a_choice_refuses_it():
    with pytest.raises(ValueError, match="score_at is 'pad': GRPO has no such choice, leave it at 'eos'"):
        GRPO(a_model(), share_of_a, None, replace(CONFIG, score_at="pad", answers=3))
    assert GRPO(a_model(), share_of_a, None, replace(CONFIG, answers=3, keep="last"))


LOOPS = test_every_choice_gives_the_advantages_that_plain_loops_give
plant = partial(Mutant, "minillama.rlhf.experience")
MUTANTS = [
    plant("config.score_at,\n", "'eos',\n", LOOPS),
    plant("values_BA, judged_BA, config.gamma", "values_BA, mask_BA, config.gamma", LOOPS),
    plant("keep_mean=True", "keep_mean=False", LOOPS),
    Mutant("minillama.rlhf.train_ppo", "self.config.ratio_limit or None", "None",
           test_the_loss_has_its_cap_and_its_mean),
    plant('!= "pad":', '!= "none":',
           test_with_the_score_after_the_answer_the_values_learn_that_place_and_the_policy_does_not),
]
