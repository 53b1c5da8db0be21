"""What PPO learns from: answers with their score, the value guessed before each token, and the advantages."""

import copy
from dataclasses import dataclass, fields

import torch
from torch import nn

from minillama.rlhf import ppo
from minillama.rlhf.gae import gae
from minillama.rlhf.rollout import Rollout, answer_states
from minillama.train.sequence_loss import at_least_fp32


class ValueModel(nn.Module):
    """What the rewards still to come will sum to, guessed before each token of an answer.

    The body starts as the reward model's, which knows what a good answer looks like; the head at zero,
    so that the first advantages are those of the rewards alone.
    """

    def __init__(self, body, dim):
        super().__init__()
        self.body, self.head = body, nn.Linear(dim, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rollout):
        """`rollout.Rollout` -> (B, A), at least fp32."""
        return self.head(at_least_fp32(answer_states(self.body, rollout))).squeeze(-1)


def value_model_of(reward_model):
    """A `ValueModel` on a copy of the reward model's body, to be trained; quantized layers stay as they are."""
    body = copy.deepcopy(reward_model.body).requires_grad_()
    return ValueModel(body, reward_model.head.in_features).to(reward_model.head.weight.device).eval()


@dataclass(frozen=True)
class Experience:
    """A batch of answers and all that learning needs, computed once, by the policy that wrote them; no
    gradient flows into it. (B, A) but for the score."""

    rollout: Rollout
    score_B: torch.Tensor
    log_prob_BA: torch.Tensor
    ref_log_prob_BA: torch.Tensor
    values_BA: torch.Tensor
    advantages_BA: torch.Tensor
    returns_BA: torch.Tensor

    def rows(self, chosen):
        """The experience of some rows alone."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Experience(*(part.rows(chosen) if isinstance(part, Rollout) else part[chosen] for part in parts))


@torch.no_grad()
def make_experience(rollout, score_B, log_prob_BA, ref_log_prob_BA, values_BA, kl_coefficient, config):
    """Rewards of the tokens (the KL penalty on each, and the score), their advantages by GAE, whitened, as a
    `train_ppo.PPOConfig` says."""
    mask_BA, judged_BA = rollout.answer_mask_BA, judged_places(rollout, config.score_at)
    rewards_BA = ppo.token_rewards(score_B, log_prob_BA, ref_log_prob_BA, mask_BA, kl_coefficient, config.score_at,
                                   config.estimator, config.score_limit or None)
    unbiased = config.whitening == "unbiased"
    if config.whiten_rewards:
        rewards_BA = ppo.whiten(rewards_BA, judged_BA, keep_mean=True, unbiased=unbiased)
    advantages_BA, returns_BA = gae(rewards_BA, values_BA, judged_BA, config.gamma, config.lam)
    if config.whitening != "none":
        advantages_BA = ppo.whiten(advantages_BA, mask_BA, unbiased=unbiased)
    return Experience(rollout, score_B, log_prob_BA, ref_log_prob_BA, values_BA, advantages_BA, returns_BA)


def judged_places(rollout, score_at):
    """The places that have a value and an advantage, (B, A) bool: the answer's, and with the score at "pad" the one
    after them, which the values learn and the policy does not: it took no action there."""
    mask_BA = rollout.answer_mask_BA
    if score_at != "pad":
        return mask_BA
    return mask_BA | torch.cat([torch.zeros_like(mask_BA[:, :1]), mask_BA[:, :-1]], 1)
