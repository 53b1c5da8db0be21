"""PPO with the choices in which published programs differ, each a setting: the columns of the table in `ppo`.

The defaults are those of `train_ppo.PPO`, so that a run without any of them is the same to the last bit.
"""

from dataclasses import dataclass

import torch

from minillama.config_checks import choice, number
from minillama.rlhf import ppo
from minillama.rlhf.experience import Experience
from minillama.rlhf.gae import gae
from minillama.rlhf.grpo import GRPO, RLOO
from minillama.rlhf.train_ppo import PPO, PPOConfig, step_optimizer

WHITENING = ("none", "biased", "unbiased")


@dataclass(frozen=True)
class PublishedPPOConfig(PPOConfig):
    """What decides a run, and in it what programs decide apart; each is explained where `ppo` computes it."""

    score_at: str = choice("eos", *ppo.SCORE_PLACES.words)  # which token gets the score
    score_limit: float = number(0.0, 1e-6, 1e9, or_zero=True)  # scores are cut to +- it; 0: never
    estimator: str = choice("k1", *ppo.KL_ESTIMATORS.words)  # of the KL in the reward
    whitening: str = choice("biased", *WHITENING)  # of advantages, and with which variance
    whiten_rewards: bool = False  # before the advantages, their mean kept
    ratio_limit: float = number(0.0, 1, 1e12, or_zero=True)  # a cap on the ratio itself; 0: none
    average: str = choice("tokens", *ppo.AVERAGES.words)  # over what the policy's loss is a mean
    keep: str = choice("best", "best", "last")  # policy, where questions are held out


class PublishedPPO(PPO):
    """A run under a `PublishedPPOConfig`. With the score on the slot after the answer ("pad"), that slot has a value
    and an advantage too, which the values learn and the policy does not: it took no action there."""

    def add_advantages(self, rollout, score_B, log_prob_BA, ref_log_prob_BA):
        """The experience: rewards, perhaps whitened, advantages by GAE, perhaps whitened."""
        config, mask_BA, judged_BA = self.config, rollout.answer_mask_BA, self.judged_places(rollout)
        rewards_BA = ppo.token_rewards(score_B, log_prob_BA, ref_log_prob_BA, mask_BA, self.kl_coefficient,
                                       config.score_at, config.estimator, config.score_limit or None)
        unbiased = config.whitening == "unbiased"
        if config.whiten_rewards:
            rewards_BA = ppo.whiten(rewards_BA, judged_BA, keep_mean=True, unbiased=unbiased)
        values_BA = self.values(rollout)
        advantages_BA, returns_BA = gae(rewards_BA, values_BA, judged_BA, config.gamma, config.lam)
        if config.whitening != "none":
            advantages_BA = ppo.whiten(advantages_BA, mask_BA, unbiased=unbiased)
        return Experience(rollout, score_B, log_prob_BA, ref_log_prob_BA, values_BA, advantages_BA, returns_BA)

    def judged_places(self, rollout):
        """The places that have a value, (B, A) bool: the answer's, and with "pad" the one after them."""
        mask_BA = rollout.answer_mask_BA
        if self.config.score_at != "pad":
            return mask_BA
        return mask_BA | torch.cat([torch.zeros_like(mask_BA[:, :1]), mask_BA[:, :-1]], 1)

    def policy_loss(self, log_prob_BA, experience):
        """The clipped loss over tokens or answers."""
        config = self.config
        return ppo.policy_loss(log_prob_BA, experience.log_prob_BA, experience.advantages_BA,
                               experience.rollout.answer_mask_BA, config.clip, config.ratio_limit or None,
                               config.average)

    def learn_values(self, experience):
        """One step of the value model -> {"value_loss": before it}."""
        loss = ppo.value_loss(self.values(experience.rollout), experience.values_BA, experience.returns_BA,
                              self.judged_places(experience.rollout), self.config.value_clip)
        step_optimizer(self.value_optimizer, loss, self.config.clip_norm)
        return {"value_loss": loss.item()}


LEARNERS = {"ppo": PublishedPPO, "grpo": GRPO, "rloo": RLOO}
