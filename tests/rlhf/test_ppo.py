"""PPO's pieces: equal to the papers' loops, and blind to what stands on padding."""

import math
from functools import partial

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.evaluate.diagnosis import explained_variance
from minillama.rlhf.ppo import (
    clip_fraction,
    entropy,
    masked_mean,
    masked_variance,
    policy_loss,
    value_loss,
    whiten,
)

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # fp64, sums of a few dozen terms of size 1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(*lengths, slots):
    return torch.arange(slots) < torch.tensor(lengths)[:, None]


MASK = mask_of(5, 1, 7, slots=8)


def reals(x, mask=MASK):
    return x[mask].tolist()


def poison(x, mask, value):
    """The same numbers with NaN or 1e9 outside the mask, ready to take a gradient."""
    return x.masked_fill(~mask, value).clone().requires_grad_()


# --- statistics over real tokens


def test_mean_and_variance_are_those_of_the_real_tokens():
    for mask in (MASK, mask_of(2, slots=2), mask_of(1, 0, 1, slots=3)):
        x = normal(*mask.shape, seed=3)
        torch.testing.assert_close(masked_mean(x, mask).item(), oracles.mean(reals(x, mask)), **EXACT)
        for unbiased in (False, True):
            wanted = oracles.variance(reals(x, mask), unbiased)
            torch.testing.assert_close(masked_variance(x, mask, unbiased).item(), wanted, **EXACT)


def test_whitening_is_over_real_tokens_only():
    for keep_mean in (False, True):
        for unbiased in (False, True):
            x = 3 * normal(3, 8) + 5
            white = whiten(x.masked_fill(~MASK, math.nan), MASK, keep_mean, unbiased)
            assert reals(white) == pytest.approx(oracles.whiten(reals(x), keep_mean, unbiased), rel=1e-12)
            assert not white[~MASK].any()


def test_whitened_advantages_are_centred_with_deviation_one():
    white = torch.tensor(reals(whiten(100 + normal(3, 8), MASK)))
    assert abs(white.mean().item()) < 1e-6 and abs(white.std(correction=0).item() - 1) < 1e-6


def test_whitening_one_token_or_equal_tokens_gives_zeros():
    assert whiten(torch.tensor([[7.0]]), torch.tensor([[True]])).tolist() == [[0.0]]
    assert whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() < 1e-3
    with pytest.raises(ValueError, match="unbiased"):
        whiten(torch.tensor([[7.0]]), torch.tensor([[True]]), unbiased=True)


# --- losses


def losses(mask=MASK, seed=0):
    """New and old log-probabilities whose ratio leaves [0.8, 1.2] on both sides, and advantages of both signs."""
    old, advantages = normal(*mask.shape, seed=seed) - 2, normal(*mask.shape, seed=seed + 1)
    return old + 0.4 * normal(*mask.shape, seed=seed + 2), old, advantages


def test_the_policy_loss_is_the_papers_formula():
    for mask in (MASK, mask_of(1, slots=1), mask_of(3, 17, slots=17)):
        new, old, advantages = losses(mask)
        for clip in (0.2, 0.05):
            triples = zip(reals(new, mask), reals(old, mask), reals(advantages, mask), strict=True)
            wanted = -oracles.mean([oracles.policy_objective(*triple, clip) for triple in triples])
            torch.testing.assert_close(policy_loss(new, old, advantages, mask, clip).item(), wanted, **EXACT)


def test_the_average_over_answers_is_the_mean_of_their_means():
    new, old, advantages = losses()
    alone = [
        policy_loss(new[i : i + 1], old[i : i + 1], advantages[i : i + 1], MASK[i : i + 1]).item() for i in range(3)
    ]
    ours = policy_loss(new, old, advantages, MASK, average="answers")
    torch.testing.assert_close(ours.item(), oracles.mean(alone), **EXACT)


def test_a_ratio_limit_bounds_the_cost_of_a_token():
    one, mask = torch.ones(1, 1).double(), torch.tensor([[True]])
    assert policy_loss(100 * one, 0 * one, -one, mask, ratio_limit=10).item() == 10
    assert policy_loss(2 * one, 0 * one, -one, mask).item() == pytest.approx(math.exp(2))


def test_the_first_step_is_the_plain_policy_gradient():
    _, old, advantages = losses()
    new = old.clone().requires_grad_()
    policy_loss(new, old, advantages, MASK).backward()
    torch.testing.assert_close(new.grad, -advantages * MASK / MASK.sum(), **EXACT)


def test_the_value_loss_is_the_clipped_formula():
    values, old, returns = 0.5 * normal(3, 8), 0.5 * normal(3, 8, seed=1), normal(3, 8, seed=2)
    for clip in (0.2, 0.7):
        triples = zip(reals(values), reals(old), reals(returns), strict=True)
        wanted = oracles.mean([oracles.value_error(*triple, clip) for triple in triples])
        torch.testing.assert_close(value_loss(values, old, returns, MASK, clip).item(), wanted, **EXACT)
    plain = 0.5 * oracles.mean([(v - r) ** 2 for v, r in zip(reals(values), reals(returns), strict=True)])
    torch.testing.assert_close(value_loss(values, old, returns, MASK, clip=None).item(), plain, **EXACT)


def test_gradients_are_those_of_finite_differences():
    mask = mask_of(3, 2, slots=4)
    new, old, advantages = losses(mask)
    for average in ("tokens", "answers"):
        assert torch.autograd.gradcheck(
            lambda x, a=average: policy_loss(x, old, advantages, mask, average=a, ratio_limit=10),
            (new.clone().requires_grad_(),),
        )
    values = normal(2, 4, seed=5)
    assert torch.autograd.gradcheck(
        lambda x: value_loss(x, values + 0.3 * advantages, old, mask), (values.clone().requires_grad_(),)
    )
    assert torch.autograd.gradcheck(lambda x: entropy(x, mask), (normal(2, 4, 3).requires_grad_(),))


def test_padding_touches_neither_losses_nor_gradients():
    new, old, advantages = losses()
    for value in (math.nan, 1e9, -math.inf):
        for loss in (policy_loss, value_loss, lambda *x: policy_loss(*x, average="answers")):
            clean, spoiled = new.clone().requires_grad_(), poison(new, MASK, value)
            wanted = loss(clean, old, advantages, MASK)
            ours = loss(spoiled, poison(old, MASK, value), poison(advantages, MASK, value), MASK)
            wanted.backward()
            ours.backward()
            assert torch.equal(ours, wanted)
            assert torch.equal(spoiled.grad[MASK], clean.grad[MASK]) and not spoiled.grad[~MASK].any()


def test_targets_receive_no_gradient():
    for loss in (policy_loss, value_loss):
        first, second, third = (x.clone().requires_grad_() for x in losses())
        loss(first, second, third, MASK).backward()
        assert first.grad is not None and second.grad is None and third.grad is None


# --- what to watch


def test_the_clip_fraction_counts_the_tokens_without_gradient():
    new, old, advantages = losses()
    leaf = new.clone().requires_grad_()
    policy_loss(leaf, old, advantages, MASK).backward()
    silent = (leaf.grad == 0) & MASK
    assert 0 < silent.sum() < MASK.sum()
    assert clip_fraction(new, old, advantages, MASK) == pytest.approx(silent.sum().item() / MASK.sum().item())


def test_entropy_is_that_of_the_definition():
    logits = 2 * normal(3, 8, 5)
    wanted = oracles.mean([oracles.entropy(row) for row in logits[MASK].tolist()])
    spoiled = logits.masked_fill(~MASK[:, :, None], math.nan)
    torch.testing.assert_close(entropy(spoiled, MASK).item(), wanted, **EXACT)
    uniform = torch.tensor([[[0.0, 0.0, -math.inf, 0.0]]])
    assert entropy(uniform, torch.tensor([[True]])).item() == pytest.approx(math.log(3))


def test_explained_variance_is_that_of_the_definition():
    values, returns = normal(3, 8), normal(3, 8, seed=1)
    left = [r - v for r, v in zip(reals(returns), reals(values), strict=True)]
    wanted = 1 - oracles.variance(left) / oracles.variance(reals(returns))
    assert explained_variance(poison(values, MASK, math.nan), returns, MASK) == pytest.approx(wanted, rel=1e-12)
    assert explained_variance(returns + 3, returns, MASK) == pytest.approx(1.0)  # a constant error explains all
    assert explained_variance(torch.ones(3, 8), returns, MASK) == pytest.approx(0.0, abs=1e-12)
    assert explained_variance(values, torch.ones(3, 8), MASK) == 0.0, "nothing to explain, and JSON has no NaN"


def test_wrong_arguments_are_named():
    x, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="'mean'"):
        policy_loss(x, x, x, mask, average="mean")
    with pytest.raises(ValueError, match="no real token"):
        masked_mean(x, ~mask)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        masked_mean(x, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="float32"):
        masked_mean(x, x)


plant = partial(Mutant, "minillama.rlhf.ppo")
PAPER, VALUE = test_the_policy_loss_is_the_papers_formula, test_the_value_loss_is_the_clipped_formula
WHITE, STATISTICS = (test_whitening_is_over_real_tokens_only, test_mean_and_variance_are_those_of_the_real_tokens)
CLIPPED, PADDING = (
    test_the_clip_fraction_counts_the_tokens_without_gradient,
    test_padding_touches_neither_losses_nor_gradients,
)
# fmt: off
MUTANTS = [
    # whitening
    plant("_blank(x, mask).sum() / mask.sum()", "_blank(x, mask).mean()", STATISTICS),
    plant("(x - x.sum() / n).masked_fill(~mask, 0.0).square()", "(x - x.sum() / n).square()", STATISTICS),
    plant("(n - 1 if unbiased else n)", "(n if unbiased else n - 1)", STATISTICS),
    plant("(white + mean if keep_mean else white)", "(white if keep_mean else white + mean)", WHITE),
    plant("(white + mean if keep_mean else white)", "(white + mean)",
          test_whitened_advantages_are_centred_with_deviation_one),
    plant("torch.rsqrt(masked_variance", "torch.reciprocal(masked_variance", WHITE),
    plant("else white).masked_fill(~mask, 0.0)", "else white)", WHITE),
    # losses
    plant("objective_BT = torch.minimum(", "objective_BT = torch.maximum(", PAPER),
    plant("clipped_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip)", "clipped_BT = ratio_BT", PAPER),
    plant("clipped_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip)", "clipped_BT = ratio_BT.clamp(max=1.0 + clip)", PAPER),
    plant("return -masked_mean(objective_BT, mask_BT)", "return masked_mean(objective_BT, mask_BT)", PAPER),
    plant("return -masked_mean(objective_BT, mask_BT)", "return -objective_BT.mean()", PAPER),
    plant("ratio_BT.clamp(max=ratio_limit)", "ratio_BT", test_a_ratio_limit_bounds_the_cost_of_a_token),
    plant("_blank(x_BT, mask_BT).sum(-1) / lengths_B.clamp(min=1)", "x_BT.mean(-1)",
          test_the_average_over_answers_is_the_mean_of_their_means),
    plant("_blank(old_log_prob_BT, mask_BT).detach()).exp()", "_blank(old_log_prob_BT, mask_BT).detach())", PAPER),
    plant("torch.maximum(error_BT", "torch.minimum(error_BT", VALUE),
    plant("old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)",
          "returns_BT + (values_BT - returns_BT).clamp(-clip, clip)", VALUE),
    plant("return 0.5 * masked_mean(error_BT", "return masked_mean(error_BT", VALUE),
    plant("return at_least_fp32(x).masked_fill(~mask, 0.0)", "return at_least_fp32(x) * mask", PADDING),
    plant("_blank(advantages_BT, mask_BT).detach()", "_blank(advantages_BT, mask_BT)",
          test_targets_receive_no_gradient),
    # what to watch
    plant("advantages_BT < ratio_BT * advantages_BT", "advantages_BT != ratio_BT * advantages_BT", CLIPPED),
    plant("logits_BTV[mask_BT]", "logits_BTV", test_entropy_is_that_of_the_definition),
    Mutant("minillama.evaluate.diagnosis", "(returns_BT - values_BT, mask_BT)", "(values_BT, mask_BT)",
           test_explained_variance_is_that_of_the_definition),
    Mutant("minillama.evaluate.diagnosis", "(1.0 - left / total)", "(left / total)",
           test_explained_variance_is_that_of_the_definition),
]
# fmt: on
