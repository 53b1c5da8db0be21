"""Laws of PPO's updates: what is measured, averaged and kept, and the order in which questions are asked."""

import math
from dataclasses import replace

import pytest
import torch
from letters import Letters
from mutants import Mutant
from test_train_ppo import CONFIG, a_model, a_run, prompts, trained

from minillama.rlhf.rollout import answer_logits, choose_questions, log_probs_of, sample_answers
from minillama.rlhf.train_ppo import PPOConfig, PPORun, with_rates


def test_the_defaults_are_those_of_the_published_program():
    """train_policy.py of openai/lm-human-preferences, the program of arXiv 1909.08593."""
    config = PPOConfig()
    assert (config.epochs, config.minibatches, config.gamma, config.lam) == (4, 1, 1.0, 0.95)
    assert (config.clip, config.value_clip, config.kl_coefficient, config.temperature) == (0.2, 0.2, 0.15, 1.0)


def test_rates_that_are_not_given_fall_as_the_width_grows():
    """0.064 / D, and three times that for the value model: 5e-4 at 128; what is given stays."""
    assert [with_rates(PPOConfig(), D).lr for D in (64, 128, 4096)] == pytest.approx([1e-3, 5e-4, 1.5625e-5])
    assert with_rates(PPOConfig(), 128).value_lr == pytest.approx(1.5e-3)
    given = with_rates(PPOConfig(lr=0.25, value_lr=0.125), 128)
    assert (given.lr, given.value_lr) == (0.25, 0.125) and with_rates(PPOConfig(lr=0.25), 8).value_lr == 0.75
    assert a_run(a_model(), lr=None, value_lr=None).config.lr == 0.064 / 16


def far_from_the_sampler(log_ratio, **changes):
    """The update of a batch whose policy makes every token exp(log_ratio) times as likely as when it sampled."""
    run = a_run(a_model(), **changes)
    rollout = sample_answers(run.policy, prompts(run, 0), Letters.eos_id, 6, 1.0, 0)
    experience = run.make_experience(rollout)
    before = [p.detach().clone() for p in [*run.policy.parameters(), *run.value.parameters()]]
    measured = run.update(replace(experience, log_prob_BA=experience.log_prob_BA - log_ratio))
    after = [*run.policy.parameters(), *run.value.parameters()]
    assert (measured is None) == all(map(torch.equal, before, after)), "no measure, no step"
    return measured


def test_an_update_too_far_from_the_policy_that_sampled_is_not_made():
    """k3 of a token at a ratio e^x is e^-x - 1 + x with the roles of the two; 0.15 is 1.5 times 0.1: x about 0.5."""
    for x in (0.49, 0.61):
        kl = math.exp(x) - 1 - x
        assert (far_from_the_sampler(x, old_kl=0.1) is None) == (kl > 0.15)
        assert far_from_the_sampler(x, old_kl=kl / 1.5 + 1e-3) and far_from_the_sampler(x, old_kl=0.0)
    assert far_from_the_sampler(2.2, old_kl=0.0) and far_from_the_sampler(2.4, old_kl=0.0) is None, "e^2.3 is 10"
    assert far_from_the_sampler(2.4, old_kl=0.0, mean_ratio=12.0)


def test_a_batch_is_left_where_its_policy_is_too_far_but_never_before_its_first_update(monkeypatch):
    run = a_run(a_model(), epochs=4)
    rows = iter([{"entropy": 1.0, "first_ratio": 1.0}, {"entropy": 2.0, "first_ratio": 1.5}, None])
    firsts = []
    monkeypatch.setattr(run, "update", lambda experience, other, first: firsts.append(first) or next(rows))
    metrics = run.advance(prompts(run, 0), Letters.eos_id)[1]
    assert firsts == [True, False, False] and metrics["updates"] == 2
    wild = a_run(a_model(), old_kl=1e-6, lr=1e-1)
    assert wild.advance(prompts(wild, 0), Letters.eos_id)[1]["updates"] == 1


def test_beta_never_falls_below_0_within_the_horizon_that_is_allowed():
    """By up to a fifth of batch_size / kl_horizon at once: at 5 it would be 0."""
    assert PPOConfig(batch_size=49, kl_horizon=10).kl_horizon == 10
    with pytest.raises(ValueError, match="kl_horizon 10 is too short for batch_size 50: from 12.5 on"):
        PPOConfig(batch_size=50, kl_horizon=10)


def test_a_batch_may_be_larger_than_all_questions_and_begins_where_the_last_one_ended():
    config = PPOConfig(batch_size=5, seed=3)
    orders = [torch.randperm(3, generator=torch.Generator().manual_seed(3 + turn)).tolist() for turn in range(4)]
    row = sum(orders, [])
    assert [choose_questions(3, i, config) for i in (0, 1)] == [row[:5], row[5:10]]


def test_what_updates_measured_is_averaged_but_for_the_first_ones_alone(monkeypatch):
    """Two epochs of two minibatches: four updates, numbered over the whole run."""
    run, numbers, rows = a_run(a_model(), epochs=2, minibatches=2), [], []

    def update(experience, other_loss, first):
        rows.append(len(experience.score_B))
        numbers.append(other_loss)
        return {"loss": float(len(rows)), "entropy": 10.0 * len(rows), "first_ratio": 1.0 if len(rows) == 1 else 9.0}

    monkeypatch.setattr(run, "update", update)
    for iteration in range(2):
        rows.clear()
        metrics = run.advance(prompts(run, iteration), Letters.eos_id, lambda number: number)[1]
        assert (metrics["loss"], metrics["entropy"], metrics["first_ratio"]) == (2.5, 10.0, 1.0) and rows == [3] * 4
        assert metrics["iteration"] == iteration
    assert numbers == list(range(8))


@pytest.mark.parametrize(("ratio", "fine"), [(1.0099, True), (1.0101, False), (0.9901, True), (0.9899, False),
                                             (float("nan"), False)])
def test_the_first_ratio_may_be_a_hundredth_off(monkeypatch, ratio, fine):
    run = a_run(a_model(), epochs=1)
    monkeypatch.setattr(run, "update", lambda *given: {"entropy": 1.0, "first_ratio": ratio})
    if fine:
        assert run.advance(prompts(run, 0), Letters.eos_id)[1]["first_ratio"] == ratio
    else:
        with pytest.raises(FloatingPointError, match="before the first update, not 1"):
            run.advance(prompts(run, 0), Letters.eos_id)


@pytest.mark.parametrize("noise", [torch.randn, torch.rand])
def test_an_update_measures_by_its_formulas_before_it_steps(noise):
    """Over the real tokens of the answers, in double precision and by hand; and the added loss is learned too."""
    run = a_run(a_model(), clip=0.05)
    rollout = sample_answers(run.policy, prompts(run, 0), Letters.eos_id, 6, 1.0, 0)
    old = run.make_experience(rollout)
    mask = rollout.answer_mask_BA
    torch.manual_seed(4)
    experience = replace(old, log_prob_BA=old.log_prob_BA + 0.1 * noise(mask.shape) * mask)  # or below 1 alone
    extra = (run.policy.tok_embeddings.weight**2).sum()
    with torch.no_grad():
        logits = answer_logits(run.policy, rollout, run.config.temperature)
        now = log_probs_of(logits, rollout)[mask].double()
    x = now - experience.log_prob_BA[mask].double()
    gain, p = experience.advantages_BA[mask].double(), logits[mask].double().softmax(-1)
    loss = -torch.minimum(x.exp() * gain, x.exp().clamp(0.95, 1.05) * gain).mean().item()
    cut = ((gain > 0) & (x.exp() > 1.05) | (gain < 0) & (x.exp() < 0.95)).double().mean().item()
    wanted = {"other_loss": extra.item(), "policy_loss": loss, "clip_fraction": cut,
              "approx_kl": (x.exp() - 1 - x).mean().item(), "mean_ratio": x.exp().mean().item(),
              "first_ratio": max(x.exp().tolist(), key=lambda ratio: abs(ratio - 1)),
              "entropy": -(p * p.log()).sum(-1).mean().item()}
    before = run.policy.tok_embeddings.weight.detach().clone()
    measured = run.update(experience, extra)
    value_loss = measured.pop("value_loss")
    assert 0 < cut < 1 and list(measured) == list(wanted) and measured == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert value_loss == pytest.approx(0.5 * (old.values_BA - old.returns_BA)[mask].square().mean().item(), rel=1e-4)
    assert not torch.equal(before, run.policy.tok_embeddings.weight)


def test_checkpoints_are_kept_at_their_iterations_and_at_the_end(tmp_path, monkeypatch):
    saved = []
    real = PPORun.save
    monkeypatch.setattr(PPORun, "save", lambda self: saved.append(self.ppo.iteration) or real(self))
    for every, wanted in ((2, [2, 4, 5]), (5, [5]), (0, [5]), (1, [1, 2, 3, 4, 5])):
        saved.clear()
        config = replace(CONFIG, iterations=5, epochs=1, checkpoint_every=every)
        trained(a_model(), config, folder=tmp_path / str(every))
        assert [iteration for iteration in saved if iteration] == wanted


MUTANTS = [
    Mutant("minillama.rlhf.trust_region", "kl = (log_prob_BA - old_BA)", "kl = (old_BA - log_prob_BA)",
           lambda: test_an_update_measures_by_its_formulas_before_it_steps(torch.randn)),
    Mutant("minillama.rlhf.trust_region", "<= 1.5 * config.old_kl", "<= 2.5 * config.old_kl",
           test_an_update_too_far_from_the_policy_that_sampled_is_not_made),
    Mutant("minillama.rlhf.trust_region", 'measured["mean_ratio"] <= config.mean_ratio', "True",
           test_an_update_too_far_from_the_policy_that_sampled_is_not_made),
    Mutant("minillama.rlhf.train_ppo", "lr or 0.064 / D", "lr or 0.064 / 128",
           test_rates_that_are_not_given_fall_as_the_width_grows),
]
