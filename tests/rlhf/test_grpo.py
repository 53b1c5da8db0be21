"""Laws of GRPO and RLOO: the papers' formulas, no value model, and answers of one question held against each other."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from letters import Letters
from mutants import Mutant
from test_train_ppo import CONFIG, a_model, same, share_of_a, trained

from minillama.rlhf import ppo
from minillama.rlhf.grpo import GRPO, LEARNERS, RLOO, group_relative, groups_of, leave_one_out
from minillama.rlhf.rollout import Rollout, answer_logits, choose_questions, log_probs_of, sample_answers
from minillama.rlhf.train_ppo import PPO, PPOConfig

GROUPS = torch.tensor([4, 1, 4, 0, 1, 4, 2, 2])  # of 3, 2, 1 and 2, in no order, and one number unused
SCORES = torch.tensor([1.0, -2.0, 4.0, 7.0, 0.5, -3.0, 2.0, 2.0], dtype=torch.float64)


def a_learner(kind, score=share_of_a, vocab_size=Letters.vocab_size, **changes):
    return kind(a_model(vocab_size=vocab_size), score, None, replace(CONFIG, answers=3, **changes))


def by_hand(of_group):
    """The advantages of SCORES, where of_group(scores of a group, place) gives one's."""
    rows = [[i for i, other in enumerate(GROUPS) if other == group] for group in GROUPS]
    return torch.tensor([of_group([SCORES[i].item() for i in row], row.index(place)) for place, row in enumerate(rows)],
                        dtype=torch.float64)


def relative(scores, place):
    mean = sum(scores) / len(scores)
    return (scores[place] - mean) / ((sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5 + 1e-4)


def against_others(scores, place):
    others = scores[:place] + scores[place + 1:]
    return scores[place] - sum(others) / len(others) if others else 0.0


def test_advantages_are_those_of_the_papers_within_each_group():
    """fp64, sums of at most three terms: a few units of 1e-16; a group of equal scores, and one of one answer: 0."""
    for ours, wanted in ((group_relative, relative), (leave_one_out, against_others)):
        torch.testing.assert_close(ours(SCORES, GROUPS), by_hand(wanted), rtol=1e-12, atol=1e-12)
        assert not ours(SCORES, GROUPS)[[3, 6, 7]].any()


def test_level_and_for_grpo_spread_of_a_group_teach_nothing():
    shift = torch.tensor([5.0, -1.0, 0.0, 2.0, 9.0], dtype=torch.float64)[GROUPS]
    for advantage in (group_relative, leave_one_out):
        torch.testing.assert_close(advantage(SCORES + shift, GROUPS), advantage(SCORES, GROUPS))
    scaled = group_relative(1000 * SCORES, GROUPS, 0.0)[GROUPS == 4]
    torch.testing.assert_close(scaled, group_relative(SCORES, GROUPS, 0.0)[GROUPS == 4])
    assert scaled.square().mean().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_the_expectation_of_leave_one_outs_gradient_is_the_gradient_of_the_expected_reward(n):
    """Over all groups of n answers that a policy of three answers can give, each with its probability; the mean of the
    group itself in the place of the others' would shrink it by (n - 1) / n."""
    reward = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    wanted, = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)
    got = torch.zeros(3, dtype=torch.float64)
    for drawn in itertools.product(range(3), repeat=n):
        log_p = logits.log_softmax(0)[list(drawn)]
        advantages = leave_one_out(reward[list(drawn)], torch.zeros(n, dtype=torch.int64))
        gradient, = torch.autograd.grad((advantages * log_p).mean(), logits)
        got += log_p.sum().exp().item() * gradient
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_rows_with_the_same_prompt_are_a_group_whatever_the_padding_holds():
    tokens = torch.tensor([[0, 1, 3, 9, 9], [1, 1, 3, 8, 0], [0, 1, 3, 7, 7], [7, 1, 3, 6, 6]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    group = groups_of(Rollout(tokens, mask, 3, torch.ones(4, dtype=torch.bool)))
    assert group[0] == group[3] and len(set(group.tolist())) == 3, "a 0 that is a token is no padding"


def test_the_questions_of_a_round_are_asked_as_often_as_they_get_answers():
    config = PPOConfig(batch_size=6, answers=3)
    rounds = [choose_questions(4, i, config) for i in range(4)]
    assert all(row[0] == row[1] == row[2] and row[3] == row[4] == row[5] for row in rounds)
    asked = [place for row in rounds for place in row[::3]]
    assert sorted(asked[:4]) == sorted(asked[4:]) == [0, 1, 2, 3], "each once before one is asked again"
    with pytest.raises(ValueError, match="batch_size 6 is no multiple of 4 answers"):
        PPOConfig(batch_size=6, answers=4)


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_the_loss_is_the_papers_and_its_gradient_flows(kind):
    """In double precision from the definitions, far from the sampler: clip, KL penalty and average all have a part."""
    run = a_learner(kind, vocab_size=7, kl_coefficient=0.5, clip=0.05)  # of seven letters: answers often end
    rollout = sample_answers(run.policy, [[1, 3], [1, 4]] * 3, Letters.eos_id, 6, 1.0, 0)
    mask = rollout.answer_mask_BA
    torch.manual_seed(3)
    noise = [0.2 * torch.randn(mask.shape) * mask for _ in range(2)]
    score = torch.randn(len(mask))
    with torch.no_grad():
        log_p = log_probs_of(answer_logits(run.policy, rollout), rollout)
    old = run.add_advantages(rollout, score, log_p + noise[0], log_p + noise[1])
    now = log_p.clone().requires_grad_()
    ours = run.policy_loss(now, old)
    ours.backward()
    p, q, r = (x.double() for x in (now.detach(), log_p + noise[0], log_p + noise[1]))
    kl_of_answers = ((q - r) * mask).sum(-1)  # k1, of the policy that sampled, from the reference
    gain = (group_relative(score.double(), groups_of(rollout)) if kind is GRPO else
            leave_one_out(score.double() - 0.5 * kl_of_answers, groups_of(rollout)))
    ratio = (p - q).exp()
    each = -torch.minimum(ratio * gain[:, None], ratio.clamp(0.95, 1.05) * gain[:, None])
    if kind is GRPO:
        each = each + 0.5 * ((r - p).exp() - 1 - (r - p))
        wanted = sum(each[i][mask[i]].mean() for i in range(len(mask))) / len(mask)
    else:
        wanted = each[mask].mean()
    assert len(set(mask.sum(-1).tolist())) > 1, "answers of several lengths"
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    step = torch.zeros_like(now)
    step[0, 0] = 1e-3
    finite = (run.policy_loss(log_p + step, old) - run.policy_loss(log_p - step, old)) / 2e-3
    assert now.grad[0, 0].item() == pytest.approx(finite.item(), rel=2e-2, abs=1e-4)


def test_the_mean_of_answers_weighs_long_and_short_ones_alike():
    x, mask = torch.tensor([[1.0, 3.0, 5.0], [10.0, 99.0, 99.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert ppo.mean_of_answers(x, mask).item() == 6.5


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_it_learns_what_the_score_pays_for_and_keeps_no_value_model(kind):
    run = a_learner(kind, vocab_size=7, iterations=24, batch_size=36, lr=1e-2, kl_coefficient=0.01, kl_target=0.0)
    history = [run.advance([[1, 3 + i // 3 % 4] for i in range(36)], Letters.eos_id)[1] for _ in range(24)]
    assert history[-1]["score"] > history[0]["score"] + 1.0 and history[0]["kl"] == 0.0 < history[-1]["kl"]
    assert [row["first_ratio"] for row in history] == [1.0] * 24 and "value_loss" not in history[0]
    assert history[0]["explained_variance"] == 0.0, "nothing is guessed"
    assert run.value is run.value_optimizer is None and not [name for name in run.state_dict() if "value" in name]


def test_a_resumed_run_ends_as_one_that_was_never_stopped_and_only_with_its_own_learner(tmp_path):
    config = replace(CONFIG, answers=2)
    whole, wanted = trained(a_model(), config, learner=RLOO)
    trained(a_model(), replace(config, iterations=2), folder=tmp_path, learner=RLOO)
    changed = trained(a_model(), config, folder=tmp_path, resume=True, learner=RLOO)
    assert [row["score"] for row in changed[1][:2]] == [row["score"] for row in wanted[:2]]
    folder = tmp_path / "again"
    assert same(whole, trained(a_model(), config, folder=folder, learner=RLOO)[0])
    assert same(whole, trained(a_model(), config, folder=folder, resume=True, learner=RLOO)[0])
    with pytest.raises(ValueError, match="cannot resume: algorithm is 'grpo'"):
        trained(a_model(), config, folder=folder, resume=True, learner=GRPO)


def test_a_group_of_one_is_refused_and_four_are_the_default():
    with pytest.raises(ValueError, match="answers is 1: a group needs two or more"):
        GRPO(a_model(), share_of_a, None, replace(CONFIG, answers=1))
    assert RLOO(a_model(), share_of_a, None, PPOConfig()).config.answers == 4
    assert LEARNERS == {"ppo": PPO, "grpo": GRPO, "rloo": RLOO}


plant = partial(Mutant, "minillama.rlhf.grpo")
PAPERS = test_advantages_are_those_of_the_papers_within_each_group
LOSS = test_the_loss_is_the_papers_and_its_gradient_flows
MUTANTS = [
    plant("(variance_B.sqrt() + epsilon)", "(variance_B + epsilon)", PAPERS),
    plant("(reward_B - mean_B) * n_B", "(reward_B - mean_B) * (n_B - 1)",
          lambda: test_the_expectation_of_leave_one_outs_gradient_is_the_gradient_of_the_expected_reward(2)),
    plant("(sum_G / n_G)[group_B], n_G", "(sum_G / len(x_B))[group_B], n_G", PAPERS),
    plant("masked_fill(padded, -1)", "masked_fill(padded, 0)",
          test_rows_with_the_same_prompt_are_a_group_whatever_the_padding_holds),
    plant("clipped + self.kl_coefficient", "clipped - self.kl_coefficient", lambda: LOSS(GRPO)),
    plant('ref_log_prob_BA, "k3")', 'ref_log_prob_BA, "k1")', lambda: LOSS(GRPO)),
    plant(', average="answers")', ")", lambda: LOSS(GRPO)),
    plant("score_B - self.kl_coefficient * kl_B", "score_B", lambda: LOSS(RLOO)),
    Mutant("minillama.rlhf.ppo", "/ lengths_B.clamp(min=1)).sum() / (lengths_B > 0).sum()", ").sum() / lengths_B.sum()",
          test_the_mean_of_answers_weighs_long_and_short_ones_alike),
    Mutant("minillama.rlhf.rollout", " for _ in range(config.answers or 1)]", "]",
           test_the_questions_of_a_round_are_asked_as_often_as_they_get_answers),
]
