"""Rewards of tokens: the KL penalty, the place of the score, the coefficient that adapts."""

import math
from functools import partial

import oracles
import pytest
import torch
from mutants import Mutant
from test_ppo import EXACT, MASK, mask_of, normal

from minillama.rlhf.ppo import kl_estimate, next_kl_coefficient, punish_missing_eos, token_rewards


def test_kl_estimates_are_schulmans():
    p, q = normal(2, 9)
    for name in ("k1", "k2", "k3"):
        wanted = [oracles.kl_sample(a, b, name) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
        assert kl_estimate(p, q, name).tolist() == pytest.approx(wanted, rel=1e-11, abs=1e-14)
    assert (kl_estimate(p, q, "k3") >= 0).all()


def test_k1_and_k3_are_unbiased_under_p():
    p, q = normal(2, 6).log_softmax(-1)
    truth = (p.exp() * (p - q)).sum()
    for name in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * kl_estimate(p, q, name)).sum(), truth, **EXACT)


def test_the_reward_is_minus_beta_kl_with_the_score_at_the_last_real_token():
    log_prob, reference, score = (normal(3, 8), normal(3, 8, seed=1), torch.tensor([2.0, -1.0, 0.5]).double())
    for name in ("k1", "k2", "k3"):
        ours = token_rewards(score, log_prob, reference, MASK, 0.3, estimator=name)
        for row, length in enumerate((5, 1, 7)):
            wanted = [
                -0.3 * oracles.kl_sample(log_prob[row, t].item(), reference[row, t].item(), name)
                for t in range(length)
            ]
            wanted[-1] += score[row].item()
            assert ours[row].tolist() == pytest.approx(wanted + [0.0] * (8 - length), rel=1e-12, abs=1e-13)


def test_places_of_the_score_pay_what_they_say():
    zero, score = torch.zeros(3, 8), torch.tensor([2.0, -1.0, 0.5])
    full = mask_of(8, 1, 7, slots=8)
    paid = {at: token_rewards(score, zero, zero, full, 0.1, score_at=at) for at in ("eos", "pad", "every_token")}
    assert [row.nonzero().flatten().tolist() for row in paid["eos"]] == [[7], [0], [6]]
    assert [row.nonzero().flatten().tolist() for row in paid["pad"]] == [[7], [1], [7]]  # none later: the last slot
    assert paid["eos"].sum(1).tolist() == paid["pad"].sum(1).tolist() == score.tolist()
    assert paid["every_token"].sum(1).tolist() == (score * torch.tensor([8, 1, 7])).tolist()


def test_left_padding_moves_the_score_with_the_text():
    mask = torch.tensor([[False, False, True, True, False]])
    zero, score = torch.zeros(1, 5), torch.ones(1)
    assert token_rewards(score, zero, zero, mask, 0.1).tolist() == [[0, 0, 0, 1, 0]]
    assert token_rewards(score, zero, zero, mask, 0.1, score_at="pad").tolist() == [[0, 0, 0, 0, 1]]


def test_scores_are_cut_at_their_limit():
    zero, mask = torch.zeros(3, 2), mask_of(1, 2, 2, slots=2)
    paid = token_rewards(torch.tensor([9.0, -9.0, 1.0]), zero, zero, mask, 0.1, score_limit=5)
    assert paid.sum(1).tolist() == [5, -5, 1]


def test_rewards_ignore_what_stands_on_padding():
    log_prob, reference, score = normal(3, 8), normal(3, 8, seed=1), normal(3)
    for at in ("eos", "pad", "every_token"):
        wanted = token_rewards(score, log_prob, reference, MASK, 0.3, at)
        for value in (math.nan, 1e9, -math.inf):
            ours = token_rewards(
                score, log_prob.masked_fill(~MASK, value), reference.masked_fill(~MASK, value), MASK, 0.3, at
            )
            assert torch.equal(ours, wanted)


def test_rewards_stand_on_real_tokens_and_for_pad_on_the_slot_behind_them():
    mask = mask_of(8, 1, 7, slots=8)
    behind = mask | torch.nn.functional.pad(mask[:, :-1], (1, 0), value=False)
    for at, paid in (("eos", mask), ("pad", behind), ("every_token", mask)):
        rewards = token_rewards(torch.ones(3), normal(3, 8), normal(3, 8, seed=1), mask, 0.3, at)
        assert torch.equal(rewards != 0, paid)


def test_a_text_without_eos_gets_the_fixed_low_score():
    assert punish_missing_eos(torch.tensor([3.0, 3.0]), torch.tensor([True, False])).tolist() == [3.0, -1.0]


def test_the_kl_coefficient_follows_the_papers_rule_and_its_clip():
    for kl in (0.0, 4.9, 6.0, 6.5, 7.3, 1e9):
        wanted = oracles.next_kl_coefficient(0.2, kl, 6.0, 64, 2000)
        assert next_kl_coefficient(0.2, kl, target=6.0, episodes=64, horizon=2000) == pytest.approx(wanted, rel=1e-14)
    assert next_kl_coefficient(0.2, 6.0, 6.0, 64, 2000) == 0.2
    for wrong in ((math.nan, 6.0, 10), (1.0, 0.0, 10), (1.0, 6.0, 0)):
        with pytest.raises(ValueError, match="finite"):
            next_kl_coefficient(0.2, wrong[0], wrong[1], 1, wrong[2])


def test_wrong_arguments_are_named():
    x, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="'last'"):
        token_rewards(torch.ones(2), x, x, mask, 0.1, score_at="last")
    with pytest.raises(ValueError, match="'k4'"):
        kl_estimate(x, x, "k4")
    with pytest.raises(ValueError, match="without a real token"):
        token_rewards(torch.ones(2), x, x, mask_of(3, 0, slots=3), 0.1)


plant = partial(Mutant, "minillama.rlhf.ppo")
REWARD, PLACES = (
    test_the_reward_is_minus_beta_kl_with_the_score_at_the_last_real_token,
    test_places_of_the_score_pay_what_they_say,
)
KL_RULE = test_the_kl_coefficient_follows_the_papers_rule_and_its_clip
# fmt: off
MUTANTS = [
    plant("at_least_fp32(log_q) - at_least_fp32(log_p)", "at_least_fp32(log_p) - at_least_fp32(log_q)",
          test_kl_estimates_are_schulmans),
    plant("0.5 * x.square() if", "x.square() if", test_kl_estimates_are_schulmans),
    plant("torch.expm1(x) - x", "torch.expm1(x) + x", test_k1_and_k3_are_unbiased_under_p),
    plant("rewards_BT = -kl_coefficient", "rewards_BT = kl_coefficient", REWARD),
    plant('if score_at == "pad":\n        place_B', "if True:\n        place_B", REWARD),  # on the pad slot
    plant("T - 1 - mask_BT.flip(-1).int().argmax(-1)", "mask_BT.sum(-1) - 1",
          test_left_padding_moves_the_score_with_the_text),
    plant("T - 1 - mask_BT.flip(-1).int().argmax(-1)", "torch.full_like(mask_BT[:, 0], T - 1, dtype=torch.long)",
          REWARD),
    plant("(place_B + 1).clamp(max=T - 1)", "place_B + 1", PLACES),
    plant("score_B[:, None] * mask_BT", "score_B[:, None] / mask_BT.sum(1, keepdim=True) * mask_BT", PLACES),
    plant(".scatter_add(", ".scatter(", REWARD),  # the score replaces the last token's penalty
    plant("score_B.clamp(-score_limit, score_limit)", "score_B.clamp(max=score_limit)",
          test_scores_are_cut_at_their_limit),
    plant("kl_estimate(_blank(log_prob_BT, mask_BT), _blank(ref_log_prob_BT, mask_BT), estimator)",
          "kl_estimate(log_prob_BT, ref_log_prob_BT, estimator)", test_rewards_ignore_what_stands_on_padding),
    plant("(place_B + 1).clamp(max=T - 1)", "place_B",
          test_rewards_stand_on_real_tokens_and_for_pad_on_the_slot_behind_them),
    plant("torch.where(ended_B, score_B, ", "torch.where(~ended_B, score_B, ",
          test_a_text_without_eos_gets_the_fixed_low_score),
    plant("min(max(kl / target - 1.0, -limit), limit)", "kl / target - 1.0", KL_RULE),
    plant("(1.0 + error * episodes", "(1.0 - error * episodes", KL_RULE),
    plant("error * episodes / horizon", "error / horizon", KL_RULE),
]
# fmt: on
