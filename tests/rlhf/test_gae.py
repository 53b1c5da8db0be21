"""Advantages: equal to the paper's double sum, to Monte Carlo at lambda 1, and blind to padding."""

import math
from functools import partial

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.rlhf.gae import gae

# fp64, sums of at most 17 terms of size 1: 17 * 2^-53 * a few is below 1e-13.
EXACT = {"rtol": 0, "atol": 1e-13}


def batch(lengths, slots, seed=0, before=0):
    """Random rewards and values; the real tokens of a row begin at `before`; all else is NaN or huge."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), slots, generator=generator, dtype=torch.float64)
    places = torch.arange(slots)
    mask = (places >= before) & (places < before + torch.tensor(lengths)[:, None])
    return rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, 1e9), mask


def rows(x, mask):
    return [x[i][mask[i]].tolist() for i in range(len(x))]


def test_advantages_are_the_papers_double_sum():
    for lengths, slots, before in [([1], 1, 0), ([1, 2, 3], 3, 0), ([7, 1, 5], 9, 2), ([16, 17], 17, 0)]:
        rewards, values, mask = batch(lengths, slots, before=before)
        for gamma, lam in [(1.0, 0.95), (0.9, 0.5), (0.97, 0.0), (1.0, 1.0)]:
            advantages, _ = gae(rewards, values, mask, gamma, lam)
            for ours, r, v in zip(rows(advantages, mask), rows(rewards, mask), rows(values, mask), strict=True):
                wanted = oracles.gae(r, v, gamma, lam)
                assert ours == pytest.approx(wanted, rel=0, abs=1e-13)


def test_lambda_one_is_monte_carlo():
    rewards, values, mask = batch([5, 1, 11], 13)
    for gamma in (1.0, 0.9):
        advantages, returns = gae(rewards, values, mask, gamma, lam=1.0)
        for i in range(3):
            wanted = oracles.discounted_return(rewards[i][mask[i]].tolist(), gamma)
            wanted = torch.tensor(wanted, dtype=torch.float64)
            torch.testing.assert_close(returns[i][mask[i]], wanted, **EXACT)
            torch.testing.assert_close(advantages[i][mask[i]], wanted - values[i][mask[i]], **EXACT)


def test_lambda_zero_is_the_error_of_one_step():
    rewards, values, mask = batch([4], 4)
    after = torch.cat([values[:, 1:], torch.zeros(1, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(gae(rewards, values, mask, 0.9, 0.0)[0], rewards + 0.9 * after - values, **EXACT)


def test_returns_are_advantages_plus_values():
    rewards, values, mask = batch([3, 6], 8)
    advantages, returns = gae(rewards, values, mask)
    assert torch.equal(returns[mask], (advantages + values)[mask])


def test_perfect_values_leave_no_advantage():
    rewards, _, mask = batch([5, 9], 9, seed=3)
    values = torch.zeros_like(rewards)
    for i in range(2):
        wanted = oracles.discounted_return(rewards[i][mask[i]].tolist(), 0.9)
        values[i][mask[i]] = torch.tensor(wanted, dtype=torch.float64)
    assert gae(rewards, values, mask, gamma=0.9, lam=0.7)[0].abs().max() < 1e-13


def test_padding_changes_nothing():
    rewards, values, mask = batch([3, 5], 5)
    tight = gae(rewards, values, mask)
    for left, right in [(0, 4), (2, 0), (3, 1)]:

        def widen(x, fill, left=left, right=right):
            return torch.nn.functional.pad(x, (left, right), value=fill)

        wide = gae(widen(rewards, 1e9), widen(values, math.nan), widen(mask, False))
        for ours, wanted in zip(wide, tight, strict=True):
            assert torch.equal(ours, widen(wanted, 0.0))  # the same bits where real, zeros elsewhere


def test_a_hole_in_the_mask_is_stepped_over():
    rewards, values, mask = batch([4], 4)
    spread = torch.full((1, 6), math.nan, dtype=torch.float64)
    holes = torch.tensor([[True, False, True, True, False, True]])
    wide_rewards, wide_values = (spread.masked_scatter(holes, rewards), spread.masked_scatter(holes, values))
    ours = gae(wide_rewards, wide_values, holes)
    for x, wanted in zip(ours, gae(rewards, values, mask), strict=True):
        assert torch.equal(x[holes], wanted[mask])


def test_no_gradient_flows_and_half_precision_is_widened():
    values = torch.randn(2, 3, requires_grad=True)
    advantages, returns = gae(torch.randn(2, 3).half(), values.half(), torch.ones(2, 3, dtype=torch.bool))
    assert not advantages.requires_grad and not returns.requires_grad
    assert advantages.dtype == returns.dtype == torch.float32


def test_wrong_arguments_are_named():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 3\), \(2, 4\)"):
        gae(ones, ones, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="float32"):
        gae(ones, ones, ones)
    for wrong in ({"gamma": 1.01}, {"lam": -0.1}, {"lam": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            gae(ones, ones, ones.bool(), **wrong)


plant = partial(Mutant, "minillama.rlhf.gae")
SUM, PAD = test_advantages_are_the_papers_double_sum, test_padding_changes_nothing
# fmt: off
MUTANTS = [
    plant("gamma * next_value_B -", "next_value_B -", SUM),
    plant("+ gamma * lam * next_advantage_B, next", "+ lam * next_advantage_B, next", SUM),
    plant("+ gamma * lam * next_advantage_B, next", "+ gamma * next_advantage_B, next", SUM),
    plant("next_value_B - values_BT[:, t]", "next_value_B + values_BT[:, t]", SUM),
    # the value of whatever stands after the last token
    plant("torch.where(real_B, values_BT[:, t], next_value_B)", "values_BT[:, t]", SUM),
    plant("lam * next_advantage_B, next_advantage_B)", "lam * next_advantage_B, next_advantage_B * 0)",
          test_a_hole_in_the_mask_is_stepped_over),
    plant("for t in reversed(range(rewards_BT.shape[1])):", "for t in range(rewards_BT.shape[1]):", SUM),
    plant("returns_BT = advantages_BT + values_BT", "returns_BT = advantages_BT",
          test_returns_are_advantages_plus_values),
    plant("returns_BT.masked_fill(~mask_BT, 0.0)", "returns_BT", PAD),
    plant("return advantages_BT.masked_fill(~mask_BT, 0.0)", "return advantages_BT", PAD),
    plant("rewards_BT.dtype, values_BT.dtype), torch.float32)", "rewards_BT.dtype, values_BT.dtype), torch.half)",
          test_no_gradient_flows_and_half_precision_is_widened),
]
# fmt: on
