"""Laws of experience: the score is paid at EOS, each token pays for leaving the reference, padding is nothing."""

import math

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.evaluate.diagnosis import describe
from minillama.rlhf.experience import ValueModel, make_experience, value_model_of
from minillama.rlhf.reward_model import RewardModel
from minillama.rlhf.rollout import Rollout, sample_answers
from minillama.rlhf.train_ppo import PPO, PPOConfig
from minillama.transformer import Transformer

P, LENGTHS, A = 3, (5, 1, 4), 5
BETA, GAMMA, LAM = 0.3, 0.9, 0.8


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_rollout():
    mask_BA = torch.arange(A) < torch.tensor(LENGTHS)[:, None]
    mask_BP = torch.tensor([[False, True, True], [True, True, True], [False, False, True]])
    return Rollout(torch.ones(3, P + A, dtype=torch.int64), torch.cat([mask_BP, mask_BA], 1), P,
                   torch.tensor([True, True, False]))


def numbers(poison=0.0):
    """Score, log-probabilities of policy and reference, values; `poison` stands on the padding."""
    mask_BA = a_rollout().answer_mask_BA
    return normal(3, seed=0), *(normal(3, A, seed=i).masked_fill(~mask_BA, poison) for i in (1, 2, 3))


def an_experience(poison=0.0):
    return make_experience(a_rollout(), *numbers(poison), BETA, PPOConfig(gamma=GAMMA, lam=LAM))


def test_rewards_advantages_and_returns_are_those_of_the_papers_loops():
    score_B, log_prob_BA, ref_BA, values_BA = numbers()
    made, advantages = an_experience(), []
    for row, length in enumerate(LENGTHS):
        rewards = [-BETA * (log_prob_BA[row, t] - ref_BA[row, t]).item() for t in range(length)]
        rewards[-1] += score_B[row].item()  # the last token is the one that ended the text
        values = values_BA[row, :length].tolist()
        wanted = oracles.gae(rewards, values, GAMMA, LAM)
        advantages += wanted
        returns = [a + v for a, v in zip(wanted, values, strict=True)]
        assert made.returns_BA[row, :length].tolist() == pytest.approx(returns, rel=1e-12)
    mask_BA = made.rollout.answer_mask_BA
    assert made.advantages_BA[mask_BA].tolist() == pytest.approx(oracles.whiten(advantages), rel=1e-6)


def test_what_stands_on_padding_changes_nothing():
    clean, poisoned = an_experience(), an_experience(math.nan)
    assert torch.equal(clean.advantages_BA, poisoned.advantages_BA)
    assert torch.equal(clean.returns_BA, poisoned.returns_BA)
    assert describe(clean) == describe(poisoned)


def test_rows_are_rows_of_everything():
    whole = an_experience()
    part = whole.rows(torch.tensor([2, 0]))
    assert torch.equal(part.returns_BA, whole.returns_BA[[2, 0]]) and torch.equal(part.score_B, whole.score_B[[2, 0]])
    assert part.rollout.ended_B.tolist() == [False, True] and part.rollout.prompt_places == P


def test_the_kl_is_that_of_whole_answers_and_positive_where_the_policy_left():
    _, log_prob_BA, ref_BA, _ = numbers()
    per_answer = [sum((log_prob_BA - ref_BA)[row, :length].tolist()) for row, length in enumerate(LENGTHS)]
    seen = describe(an_experience())
    assert seen["kl"] == pytest.approx(oracles.mean(per_answer), rel=1e-12)
    assert seen["length"] == 10 / 3 and seen["ended"] == pytest.approx(2 / 3)
    assert seen["score"] == pytest.approx(numbers()[0].mean().item())


def a_body():
    torch.manual_seed(0)
    return Transformer(ModelConfig(16, 2, 2, 7, max_seq_len=32)).eval()


def test_a_new_value_model_guesses_zero_and_has_a_body_of_its_own():
    reward_model = RewardModel(a_body().requires_grad_(False), 16)
    value, rollout = value_model_of(reward_model), sample_answers(a_body(), [[1, 3], [1, 4, 5]], 2, 6)
    assert torch.equal(value(rollout), torch.zeros_like(value(rollout)))
    value(rollout).sum().backward()
    assert value.head.weight.grad.abs().sum() > 0 and all(p.requires_grad for p in value.parameters())
    assert not {p.data_ptr() for p in value.parameters()} & {p.data_ptr() for p in reward_model.parameters()}


def test_a_value_is_guessed_before_its_token_is_seen():
    value, rollout = ValueModel(a_body(), 16), sample_answers(a_body(), [[1, 3], [1, 4, 5]], 2, 6, seed=1)
    torch.nn.init.normal_(value.head.weight)
    before_BA = value(rollout)
    rollout.answers_BA[:, 2] = (rollout.answers_BA[:, 2] + 1) % 7
    after_BA = value(rollout)
    assert torch.equal(after_BA[:, :3], before_BA[:, :3]) and not torch.equal(after_BA[:, 3:], before_BA[:, 3:])


def test_answers_beside_a_long_prompt_are_judged_as_if_alone():
    """Scores, values and log-probabilities, where the longest prompt and answer together exceed the context of 32."""
    score, value = RewardModel(a_body(), 16).eval(), ValueModel(a_body(), 16)
    torch.nn.init.normal_(value.head.weight)
    run, prompts = PPO(a_body(), score, value, PPOConfig(temperature=0.7)), [[1, 3], [4] * 29, [5, 3] * 7]
    together = sample_answers(run.policy, prompts, 7, 20, 0.7)  # 7: no end ever comes
    assert together.tokens_BT.shape[1] == 49
    judged = run.make_experience(together)
    for row, prompt in enumerate(prompts):
        alone = run.make_experience(sample_answers(run.policy, [prompt], 7, 20, 0.7))
        n = alone.values_BA.shape[1]
        for name in ("log_prob_BA", "ref_log_prob_BA", "values_BA", "score_B"):
            ours, theirs = getattr(judged, name)[row], getattr(alone, name)[0]
            torch.testing.assert_close(ours if ours.dim() == 0 else ours[:n], theirs, rtol=0, atol=2e-5)


LOOPS = test_rewards_advantages_and_returns_are_those_of_the_papers_loops
MUTANTS = [
    Mutant("minillama.rlhf.experience", "log_prob_BA, ref_log_prob_BA, mask_BA, kl_coefficient",
           "ref_log_prob_BA, log_prob_BA, mask_BA, kl_coefficient", LOOPS),
    Mutant("minillama.rlhf.experience", "mask_BA, kl_coefficient, config.score_at,",
           "mask_BA, kl_coefficient, 'every_token',", LOOPS),
    Mutant("minillama.rlhf.experience", "judged_BA, config.gamma, config.lam)",
           "judged_BA | True, config.gamma, config.lam)", test_what_stands_on_padding_changes_nothing),
    Mutant("minillama.rlhf.experience", 'if config.whitening != "none":', "if False:", LOOPS),
    Mutant("minillama.evaluate.diagnosis", "experience.log_prob_BA, experience.ref_log_prob_BA",
           "experience.ref_log_prob_BA, experience.log_prob_BA",
           test_the_kl_is_that_of_whole_answers_and_positive_where_the_policy_left),
    Mutant("minillama.evaluate.diagnosis", ".masked_fill(~mask_BA, 0.0)", "",
           test_what_stands_on_padding_changes_nothing),
    Mutant("minillama.evaluate.diagnosis", "kl_BA.sum(-1).mean()", "kl_BA.mean()",
           test_the_kl_is_that_of_whole_answers_and_positive_where_the_policy_left),
    Mutant("minillama.rlhf.experience", "copy.deepcopy(reward_model.body)", "reward_model.body",
           test_a_new_value_model_guesses_zero_and_has_a_body_of_its_own),
    Mutant("minillama.rlhf.experience", "        nn.init.zeros_(self.head.weight)\n", "",
           test_a_new_value_model_guesses_zero_and_has_a_body_of_its_own),
]
