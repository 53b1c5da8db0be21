"""PPO beside trl 0.11.4, the last widely used program: its functions are taken out of its files, as importing the
package needs others."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_ppo import EXACT, MASK, losses, normal

from minillama.rlhf.gae import gae
from minillama.rlhf.ppo import (
    clip_fraction,
    entropy,
    kl_estimate,
    masked_mean,
    next_kl_coefficient,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)


@pytest.fixture(scope="module")
def trl():
    """Namespace of trl's core functions and of the methods of its first PPO trainer."""
    pytest.importorskip("transformers", reason="trl's core imports transformers")
    found = importlib.util.find_spec("trl")
    if found is None:
        pytest.skip("compares with trl 0.11.4, which is not installed")
    folder = Path(found.origin).parent
    spec = importlib.util.spec_from_file_location("trl_core", folder / "core.py")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    names = dict(vars(core))
    wanted = {"compute_rewards", "_kl_penalty", "compute_advantages", "loss", "AdaptiveKLController"}
    for file in ("ppo_trainer.py", "utils.py"):
        tree = ast.parse((folder / "trainer" / file).read_text(encoding="utf-8"))
        inner = [x for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for x in [c, *c.body]]
        picked = [x for x in inner if getattr(x, "name", "") in wanted]
        exec(compile(ast.fix_missing_locations(ast.Module(picked, [])), file, "exec"), names)
    return SimpleNamespace(**names)


def trainer(trl, **config):
    """What the methods read of `self`."""
    config = SimpleNamespace(
        kl_penalty="kl",
        gamma=1.0,
        lam=0.95,
        whiten_rewards=False,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        ratio_threshold=10.0,
        **config,
    )
    self = SimpleNamespace(config=config, kl_ctl=SimpleNamespace(value=0.3))
    self._kl_penalty = lambda *x: trl._kl_penalty(self, *x)
    return self


def test_whitening_equals_trls(trl):
    x = normal(3, 8)
    for keep_mean in (False, True):
        wanted = trl.masked_whiten(x, MASK.double(), shift_mean=not keep_mean)
        torch.testing.assert_close(whiten(x, MASK, keep_mean, unbiased=True)[MASK], wanted[MASK], **EXACT)


def test_rewards_and_advantages_equal_trls(trl):
    log_prob, reference, values, score = (normal(3, 8), normal(3, 8, seed=1), normal(3, 8, seed=2), normal(3))
    wanted_rewards = trl.compute_rewards(trainer(trl), score, log_prob, reference, MASK.long())[0]
    rewards = token_rewards(score, log_prob, reference, MASK, 0.3)
    torch.testing.assert_close(rewards[MASK], wanted_rewards[MASK], **EXACT)
    _, wanted, wanted_returns = trl.compute_advantages(trainer(trl), values, wanted_rewards, MASK.double())
    advantages, returns = gae(rewards, values, MASK)
    torch.testing.assert_close(whiten(advantages, MASK, unbiased=True)[MASK], wanted[MASK], **EXACT)
    torch.testing.assert_close(returns[MASK], wanted_returns[MASK], **EXACT)


def test_losses_and_statistics_equal_trls(trl):
    new, old, advantages = losses()
    values, old_values, returns, logits = (normal(3, 8), normal(3, 8, seed=7), normal(3, 8, seed=8), normal(3, 8, 5))
    policy, value, stats = trl.loss(trainer(trl), old, old_values, logits, values, new, MASK, advantages, returns)
    torch.testing.assert_close(policy_loss(new, old, advantages, MASK), policy, **EXACT)
    torch.testing.assert_close(0.1 * value_loss(values, old_values, returns, MASK), value, **EXACT)
    assert clip_fraction(new, old, advantages, MASK) == pytest.approx(stats["policy/clipfrac"].item(), rel=1e-6)
    torch.testing.assert_close(entropy(logits, MASK), stats["policy/entropy"], **EXACT)
    torch.testing.assert_close(masked_mean(kl_estimate(old, new, "k2"), MASK), stats["policy/approxkl"], **EXACT)
    torch.testing.assert_close(masked_mean(kl_estimate(old, new, "k1"), MASK), stats["policy/policykl"], **EXACT)


def test_the_adaptive_coefficient_equals_trls(trl):
    controller, ours = trl.AdaptiveKLController(0.2, 6.0, 10000), 0.2
    for kl in (0.0, 3.0, 6.1, 40.0, 6.0):
        controller.update(kl, 256)
        ours = next_kl_coefficient(ours, kl, 6.0, 256, 10000)
        assert ours == pytest.approx(controller.value, rel=1e-14)
