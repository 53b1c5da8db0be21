"""DPO: the paper's loss, a sum over the answer's tokens only, and finite optima under label noise."""

import math
from functools import partial

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.rlhf.dpo import dpo_loss, implicit_reward, sequence_log_probs

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # fp64, a handful of operations


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dpo_loss_is_the_papers_formula():
    for n in (1, 2, 7):
        four = 5 * normal(4, n, seed=n)
        for beta, flipped in [(0.1, 0.0), (0.5, 0.1), (2.0, 0.3)]:
            wanted = oracles.mean([oracles.dpo_loss(*pair, beta, flipped) for pair in four.T.tolist()])
            torch.testing.assert_close(dpo_loss(*four, beta, flipped).item(), wanted, **EXACT)


def test_a_policy_equal_to_its_reference_has_loss_log_two():
    chosen, rejected = normal(2, 5)
    assert math.isclose(dpo_loss(chosen, rejected, chosen, rejected).item(), math.log(2), rel_tol=1e-12)


def test_gradients_are_those_of_finite_differences_and_stop_at_the_reference():
    four = [x.clone().requires_grad_() for x in normal(4, 3)]
    for smoothing in (0.0, 0.2):
        assert torch.autograd.gradcheck(
            lambda c, r, e=smoothing: dpo_loss(c, r, four[2], four[3], 0.3, e), (four[0], four[1])
        )
    dpo_loss(*four).backward()
    assert four[0].grad.lt(0).all() and four[1].grad.gt(0).all()  # raise the chosen, lower the rejected
    assert four[2].grad is None and four[3].grad is None


def test_smoothing_has_its_optimum_where_the_label_noise_says():
    noise, beta = 0.2, 0.5
    best = math.log((1 - noise) / noise) / beta
    zero = torch.zeros(1, dtype=torch.float64)
    margin = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    dpo_loss(margin, zero, zero, zero, beta, noise).backward()
    assert abs(margin.grad.item()) < 1e-15


def test_the_loss_stays_finite_for_any_difference():
    far, zero = torch.tensor([1e6]), torch.zeros(1)
    assert dpo_loss(-far, far, zero, zero).item() == pytest.approx(2e5)
    assert dpo_loss(far, -far, zero, zero).item() == 0.0


def test_sequence_log_probs_sum_over_the_learned_tokens_only():
    logits = normal(3, 6, 5)
    labels = torch.tensor([[-100, -100, 3, 1, 4, -100], [2, 0, -100, 1, 1, 1], [-100] * 6])
    wanted = [
        -math.fsum(oracles.token_losses(row, label))
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert sequence_log_probs(logits, labels).tolist() == pytest.approx(wanted, rel=1e-12)
    assert wanted[2] == 0.0


def test_the_prompts_logits_touch_neither_value_nor_gradient():
    logits, labels = normal(2, 5, 4), torch.tensor([[-100, -100, 1, 2, -100], [-100, -100, -100, 0, 3]])
    wanted = sequence_log_probs(logits, labels)
    scores_a_label = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]).bool()
    poisoned = logits.masked_fill(~scores_a_label[:, :, None], math.nan).requires_grad_()
    ours = sequence_log_probs(poisoned, labels)
    ours.sum().backward()
    assert torch.equal(ours, wanted)
    assert torch.isfinite(poisoned.grad).all() and not poisoned.grad[~scores_a_label].any()


def test_the_implicit_reward_is_measured_from_the_reference():
    policy, reference = normal(2, 3)
    torch.testing.assert_close(implicit_reward(policy, reference, 0.5), 0.5 * (policy - reference))


def test_wrong_arguments_are_named():
    two = torch.zeros(2)
    for wrong in ({"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"beta": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dpo_loss(two, two, two, two, **wrong)
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        dpo_loss(two, two, two, torch.zeros(3))


plant = partial(Mutant, "minillama.rlhf.dpo")
PAPER, SUMS = (test_dpo_loss_is_the_papers_formula, test_sequence_log_probs_sum_over_the_learned_tokens_only)
# fmt: off
MUTANTS = [
    plant("at_least_fp32(policy) - at_least_fp32(reference)", "at_least_fp32(policy)", PAPER),
    plant("rejected = implicit_reward(", "rejected = -implicit_reward(", PAPER),
    plant("(chosen, rejected, label", "(rejected, chosen, label", PAPER),
    plant("label_smoothing=label_smoothing", "label_smoothing=0.0", PAPER),
    plant("return beta * (", "return (", PAPER),
    plant("reference_chosen.detach()", "reference_chosen",
          test_gradients_are_those_of_finite_differences_and_stop_at_the_reference),
    plant("-losses_N.new_zeros", "losses_N.new_zeros", SUMS),
    plant("next_targets(labels_BT))", "labels_BT[:, :-1])", SUMS),  # labels not shifted
]
# fmt: on
