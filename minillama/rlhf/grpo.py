"""GRPO and RLOO: PPO without a value model. Several answers to one question are the measure of each other.

| choice | PPO | GRPO (arXiv 2402.03300, section 4.1) | RLOO (arXiv 2402.14740) |
|---|---|---|---|
| what a score is held against | values, guessed by a model | mean of its group | mean of the others of its group |
| in units of | the batch's deviation | its group's deviation | the score |
| the advantage of a token | its own, by GAE | its answer's | its answer's |
| KL penalty | k1, in each token's reward | k3, in each token's loss | k1, in the answer's reward |
| the loss averages over | tokens | answers | tokens |

All else is PPO's: sampling, clip, guards, adaptive coefficient, best policy kept. RLOO's paper makes one update of a
batch, where the clip has no part (the ratio is 1); the further epochs of `PPOConfig.epochs` need it.

A group is all rows of a batch with the same prompt. The value model and its optimizer's state are not there; in their
place each question is answered several times.
"""

import torch

from minillama.rlhf import ppo
from minillama.rlhf.experience import Experience
from minillama.rlhf.train_ppo import PPO, PPOConfig

# Settings that PPO alone has.
CHOICES = ("score_at", "score_limit", "estimator", "whitening", "whiten_rewards", "ratio_limit", "average")
EPSILON = 1e-4  # added to a group's deviation: where all answers score alike, advantages are 0


def group_relative(score_B, group_B, epsilon=EPSILON):
    """GRPO's advantage of each answer, (B,): (r_i - mean r) / (sd r + epsilon) over the answers of its group
    (arXiv 2402.03300, section 4.1.2).

    group_B: int64, equal for answers of one group. The deviation is the biased one: a group's advantages have mean 0
    and mean square 1, whatever the level and spread of its scores, so an easy and a hard question teach alike. An
    answer alone in its group has nothing to be held against: 0.

    >>> group_relative(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-0.9999,  0.9999,  0.0000])
    """
    mean_B, _ = _group_means(score_B, group_B)
    variance_B, _ = _group_means((score_B - mean_B).square(), group_B)
    return (score_B - mean_B) / (variance_B.sqrt() + epsilon)


def leave_one_out(reward_B, group_B):
    """RLOO's advantage of each answer, (B,): r_i - mean of r_j over the other answers j of its group.

    With n answers, n / (n - 1) (r_i - mean r) (arXiv 2402.14740; Kool et al. 2019). What an answer is held
    against does not depend on that answer, so the gradient's expectation stays that of REINFORCE, whatever n >= 2. An
    answer alone in its group: 0.

    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 0]))
    tensor([-3.0000, -1.5000,  4.5000])
    """
    mean_B, n_B = _group_means(reward_B, group_B)
    return (reward_B - mean_B) * n_B / (n_B - 1).clamp(min=1)


def groups_of(rollout):
    """The number of each row's group, (B,) int64: rows with the same prompt have the same."""
    P, padded = rollout.prompt_places, ~rollout.mask_BT
    prompt_BP = rollout.tokens_BT.masked_fill(padded, -1)[:, :P]
    return torch.unique(prompt_BP, dim=0, return_inverse=True)[1]


def _group_means(x_B, group_B):
    """(the mean over its group, how many that are) of each row, (B,) both."""
    n_G = torch.bincount(group_B)
    sum_G = x_B.new_zeros(len(n_G)).index_add(0, group_B, x_B)
    return (sum_G / n_G)[group_B], n_G[group_B]


def refuse_choices(config, algorithm):
    """ValueError where a `PPOConfig` makes a choice that this algorithm does not have."""
    for name, given in ((name, getattr(config, name)) for name in CHOICES):
        if given != getattr(PPOConfig, name):
            raise ValueError(f"{name} is {given!r}: {algorithm} has no such choice, leave it at "
                             f"{getattr(PPOConfig, name)!r}, or take --algorithm ppo")


class GroupLearner(PPO):
    """What GRPO and RLOO share: no value model, and one advantage for all tokens of an answer.

    The arguments are those of `PPO`, but that `value` is not used. Metrics: "explained_variance" is 0, as nothing is
    guessed, and there is no "value_loss".
    """

    answers, guesses_values = 4, False  # of a group: DeepSeekMath's 64 leave a batch of 64 a single question

    def __init__(self, policy, score, value, config):
        refuse_choices(config, type(self).__name__)
        super().__init__(policy, score, None, config)
        if self.config.answers < 2:
            raise ValueError(f"answers is {self.config.answers}: a group needs two or more to be held against each "
                             "other")

    def add_advantages(self, rollout, score_B, log_prob_BA, ref_log_prob_BA):
        """The experience, with advantages of answers instead of tokens; the values are 0."""
        mask_BA = rollout.answer_mask_BA
        kl_B = ppo.kl_estimate(log_prob_BA, ref_log_prob_BA).masked_fill(~mask_BA, 0.0).sum(-1)
        advantages_BA = self.advantages(score_B, kl_B, groups_of(rollout))[:, None] * mask_BA
        return Experience(rollout, score_B, log_prob_BA, ref_log_prob_BA, torch.zeros_like(log_prob_BA), advantages_BA,
                          advantages_BA)

    def learn_values(self, experience):
        """Nothing."""
        return {}


class GRPO(GroupLearner):
    """Group relative policy optimisation (arXiv 2402.03300 eq. 3):

        loss = 1/B sum_i 1/|o_i| sum_t -min(rho A_i, clip(rho) A_i) + beta k3(pi || pi_ref)
    """

    def advantages(self, score_B, kl_B, group_B):
        """The KL stays out of the reward; `policy_loss` adds it."""
        return group_relative(score_B, group_B)

    def policy_loss(self, log_prob_BA, experience):
        """Averaged over answers, with the KL penalty, whose gradient flows."""
        mask_BA = experience.rollout.answer_mask_BA
        clipped = ppo.policy_loss(log_prob_BA, experience.log_prob_BA, experience.advantages_BA, mask_BA,
                                  self.config.clip, average="answers")
        kl_BA = ppo.kl_estimate(log_prob_BA, experience.ref_log_prob_BA, "k3")
        return clipped + self.kl_coefficient * ppo.mean_of_answers(kl_BA, mask_BA)


class RLOO(GroupLearner):
    """REINFORCE leave-one-out (arXiv 2402.14740): the whole answer is one action, its reward the score less
    beta log(pi / pi_ref) of the whole answer."""

    def advantages(self, score_B, kl_B, group_B):
        """Of the answers' rewards, KL penalty and all."""
        return leave_one_out(score_B - self.kl_coefficient * kl_B, group_B)


LEARNERS = {"ppo": PPO, "grpo": GRPO, "rloo": RLOO}
