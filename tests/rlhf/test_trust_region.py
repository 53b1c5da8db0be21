"""Laws of the trust region: no batch ends with a policy beyond it, and what is within it is left alone."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from letters import Letters
from mutants import Mutant
from test_train_ppo import a_model, a_run, prompts, walk

from minillama.rlhf.rollout import answer_logits, log_probs_of, sample_answers
from minillama.rlhf.train_ppo import PPOConfig
from minillama.rlhf.trust_region import HALVINGS, LastBatch, distance, pull_back
from minillama.train.optimizer import AdamW

SEEDS = (0, 1, 2)


def learned(seed, **changes):
    """One batch -> (its metrics, the policy's weights, how far it ended: nats of a token by the formula)."""
    run = a_run(a_model(seed=seed), seed=seed, **changes)
    rollout = sample_answers(run.policy, prompts(run, 0), Letters.eos_id, 6, 1.0, seed)
    experience, mask_BA = run.make_experience(rollout), rollout.answer_mask_BA
    metrics = run.learn(experience, seed)
    with torch.no_grad():
        now_BA = log_probs_of(answer_logits(run.policy, rollout), rollout)
    x = (now_BA - experience.log_prob_BA)[mask_BA].double()
    return metrics, run.policy.state_dict(), (x.exp() - 1 - x).mean().item()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_batch_ends_beyond_the_region_however_high_the_rate(seed):
    """Its last step too: of the first epoch, of the last, of a minibatch; 1e-6: that sums come in another order."""
    for changes in ({"epochs": 1}, {"epochs": 3}, {"epochs": 2, "minibatches": 3}):
        metrics, _, kl = learned(seed, lr=0.1, old_kl=0.02, **changes)
        assert metrics["halved"] and kl <= 1.5 * 0.02 + 1e-6
        assert learned(seed, lr=0.1, old_kl=0.0, mean_ratio=1e12, **changes)[2] > 1.5 * 0.02, "what it is held from"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_within_the_region_is_learned_to_the_bit_as_without_one(seed):
    (held, weights, kl), (free, others, _) = (learned(seed, old_kl=old_kl) for old_kl in (0.1, 0.0))
    assert 0 < kl < 0.15 and held == free and held["halved"] == 0 and held["updates"] == 3
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_a_batch_only_the_step_that_went_too_far_is_shortened(seed):
    """The region's edge lies between where the first step and where the second leads."""
    (_, one, near), (_, two, far) = (learned(seed, lr=1e-2, old_kl=0.0, epochs=epochs) for epochs in (1, 2))
    metrics, held, kl = learned(seed, lr=1e-2, old_kl=(near + far) / 3, epochs=2)
    assert near < kl <= (near + far) / 2 < far and metrics["updates"] == 2
    for name, weight in held.items():
        share = 0.5 ** metrics["halved"]
        torch.testing.assert_close(weight, one[name] + share * (two[name] - one[name]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_token_that_was_never_sampled_and_has_become_likely_is_seen(seed):
    """k3 of what was sampled hardly sees it; the KL over the whole vocabulary does, by hand and in double precision."""
    run = a_run(a_model(seed=seed))
    rollout = sample_answers(run.policy, prompts(run, 0), Letters.eos_id, 6, 1.0, seed)
    experience, mask = run.make_experience(rollout), rollout.answer_mask_BA
    with torch.no_grad():
        old_BAV = answer_logits(run.policy, rollout)
    new_BAV, strange = old_BAV.clone(), next(v for v in range(Letters.vocab_size) if v not in rollout.answers_BA)
    old_BAV[..., strange] -= 12
    experience = replace(experience, log_prob_BA=log_probs_of(old_BAV, rollout))
    wanted = (new_BAV.double().softmax(-1) * (new_BAV.double().log_softmax(-1) - old_BAV.double().log_softmax(-1)))
    plain, full = (distance(new_BAV, experience, 0.2, *old)["approx_kl"] for old in ((), (old_BAV,)))
    assert full == pytest.approx(wanted.sum(-1)[mask].mean().item(), rel=1e-4) and full > 10 * plain > 0


def stepped(dtype=torch.float32):
    """A weight that a batch took from 0 to 1, and its last step to 2 -> (weight, f(beyond), which holds it)."""
    weight = torch.nn.Parameter(torch.zeros(1, 1, dtype=dtype))
    optimizer = AdamW([weight], 1.0)
    for x in (optimizer.weights[0], weight):
        torch.nn.init.constant_(x, 2.0)
    origins = [[torch.full_like(optimizer.weights[0], place)] for place in (1.0, 0.0)]
    return weight, lambda beyond: pull_back(optimizer, origins, beyond)


def test_the_last_step_is_halved_then_taken_back_then_the_whole_batch_is():
    for bound, moves, wanted in ((2.0, 0, 2.0), (1.5, 1, 1.5), (1.3, 2, 1.25), (1.0, HALVINGS + 1, 1.0),
                                 (0.3, HALVINGS + 3, 0.25), (0.0, 2 * HALVINGS + 2, 0.0)):
        weight, held = stepped()
        assert held(lambda weight=weight, bound=bound: weight.item() > bound) == moves and weight.item() == wanted


def test_a_weight_that_is_no_number_is_taken_back():
    weight, held = stepped()
    torch.nn.init.constant_(weight, math.nan)
    assert held(lambda: not weight.item() <= 2) == HALVINGS + 1 and weight.item() == 1.0


def test_a_short_weight_follows_its_fp32_copy():
    weight, held = stepped(torch.bfloat16)
    held(lambda: weight.item() > 1.3)
    assert weight.item() == 1.25


def a_batch(kls, **changes):
    """A policy of one weight, at 0 as its last batch began, with a KL of 1, and at 2 as it ended; kls: those that fresh
    answers show, one after another -> (weight, `LastBatch`, what `settle` finds)."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    optimizer = AdamW([weight], 1.0)
    check = LastBatch(optimizer, replace(PPOConfig(kl_target=3.0), **changes))
    check.settle(lambda: 1.0, lambda kl: {"kl": kl})
    check.begin()
    for x in (optimizer.weights[0], weight):
        torch.nn.init.constant_(x, 2.0)
    fresh = iter(kls)
    return weight, check, check.settle(lambda: next(fresh), lambda kl: {"kl": kl})


def test_a_batch_after_which_fresh_answers_are_too_far_is_taken_back_and_the_rate_is_half():
    for kls, wanted in (([4.0], (2.0, 1.0, 4.0)), ([4.1, 1.2], (0.0, 0.5, 1.2)), ([math.nan, 1.1], (0.0, 0.5, 1.1))):
        weight, check, (experience, seen) = a_batch(kls)
        assert (weight.item(), check.rate, experience) == wanted and experience == check.kl
        assert seen == {"kl": kls[-1], "taken_back": len(kls) - 1} and check.optimizer.weights[0].item() == wanted[0]


def test_without_a_penalty_a_target_or_a_region_no_batch_is_taken_back():
    for changes in ({"kl_coefficient": 0.0}, {"kl_target": 0.0}, {"old_kl": 0.0}):
        weight, check, (_, seen) = a_batch([99.0], **changes)
        assert weight.item() == 2.0 and check.rate == 1.0 and seen["taken_back"] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_resumed_before_a_batch_is_taken_back_takes_it_back_to_the_bit(seed):
    """A rate so high, and a target so low, that it happens; the state is what is written to the disk."""
    changes = {"iterations": 8, "lr": 0.1, "old_kl": 1.0, "kl_target": 0.3, "seed": seed}
    whole, half = (a_run(a_model(seed=seed), **changes) for _ in range(2))
    wanted = walk(whole)
    taken = [i for i, row in enumerate(wanted) if row["taken_back"]]
    last = taken[-1]
    walk(half, last)
    resumed = a_run(a_model(seed=seed), **changes)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    got = [resumed.advance(prompts(resumed, i), Letters.eos_id)[1] for i in range(last, 8)]
    assert last > 1 and got == wanted[last:] and resumed.last_batch.rate == 0.5 ** len(taken)
    assert resumed.policy_optimizer.lr == pytest.approx(0.1 / 8 * 0.5 ** len(taken))
    now, then = resumed.policy.state_dict(), whole.policy.state_dict()
    assert all(torch.equal(now[name], then[name]) for name in then)


MUTANTS = [
    Mutant("minillama.rlhf.trust_region", "not seen[\"kl\"] <= self.kl + ", "seen[\"kl\"] > self.kl + ",
           test_a_batch_after_which_fresh_answers_are_too_far_is_taken_back_and_the_rate_is_half),
    Mutant("minillama.rlhf.trust_region", "self.rate /= 2", "pass",
           test_a_batch_after_which_fresh_answers_are_too_far_is_taken_back_and_the_rate_is_half),
    Mutant("minillama.rlhf.trust_region", "config.kl_coefficient and config.old_kl", "config.old_kl",
           test_without_a_penalty_a_target_or_a_region_no_batch_is_taken_back),
    Mutant("minillama.rlhf.train_ppo", ", \"last_batch\")", ")",
           lambda: test_a_run_resumed_before_a_batch_is_taken_back_takes_it_back_to_the_bit(0)),
    Mutant("minillama.rlhf.train_ppo", "rate = self.last_batch.rate * (", "rate = 1 * (",
           lambda: test_a_run_resumed_before_a_batch_is_taken_back_takes_it_back_to_the_bit(0)),
    Mutant("minillama.rlhf.trust_region", "kl = torch.maximum(kl, ", "kl = torch.minimum(kl, ",
           lambda: test_a_token_that_was_never_sampled_and_has_become_likely_is_seen(0)),
    Mutant("minillama.rlhf.train_ppo", "lambda: is_far(", "lambda: None and is_far(",
           lambda: test_no_batch_ends_beyond_the_region_however_high_the_rate(0)),
    Mutant("minillama.rlhf.train_ppo", ", *self.origins[-1:]]", "][-1:] and self.origins[-1:]",
           lambda: test_of_a_batch_only_the_step_that_went_too_far_is_shortened(0)),
    Mutant("minillama.rlhf.trust_region", "for origin in origins", "for origin in origins[:1]",
           test_the_last_step_is_halved_then_taken_back_then_the_whole_batch_is),
    Mutant("minillama.rlhf.trust_region", "if share else kept", "if True else kept",
           test_a_weight_that_is_no_number_is_taken_back),
    Mutant("minillama.rlhf.trust_region", "parameter.copy_(weight)", "pass",
           test_a_short_weight_follows_its_fp32_copy),
]
