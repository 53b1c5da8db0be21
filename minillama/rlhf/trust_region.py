"""PPO's trust region: a step that carries the policy too far is halved, as in TRPO's line search (arXiv 1502.05477,
appendix C). The clip of PPO's loss bounds no step: it takes the gradient of a token away once its ratio has moved.
"""

import torch

from minillama.rlhf import ppo
from minillama.rlhf.rollout import log_probs_of

HALVINGS = 6  # of a step, before it is taken back whole


@torch.no_grad()
def distance(logits_BAV, experience, clip, old_BAV=None):
    """How far a policy with these logits at an `Experience`'s answers is from the one that sampled them:
    {"clip_fraction", "approx_kl": nats a token, by k3, "mean_ratio", "first_ratio": the farthest from 1}.

    old_BAV: the logits of the one that sampled; "approx_kl" is then KL(policy || it) over the whole vocabulary, where
    that is more: what has become likely and was never sampled leaves little trace in k3."""
    log_prob_BA = log_probs_of(logits_BAV, experience.rollout)
    return distance_of(log_prob_BA, experience, clip, None if old_BAV is None else full_kl(logits_BAV, old_BAV))


@torch.no_grad()
def full_kl(logits_BAV, old_BAV):
    """KL(policy || old) over the whole vocabulary at each place, (B, A)."""
    log_p_BAV, log_old_BAV = logits_BAV.log_softmax(-1), old_BAV.log_softmax(-1)
    return (log_p_BAV.exp() * (log_p_BAV - log_old_BAV)).sum(-1)


@torch.no_grad()
def distance_of(log_prob_BA, experience, clip, kl_BA=None):
    """`distance` of a policy with these log-probabilities of the answers' tokens, and this `full_kl`, if any."""
    mask_BA, old_BA = experience.rollout.answer_mask_BA, experience.log_prob_BA
    ratios_N, kl = (log_prob_BA - old_BA)[mask_BA].exp(), ppo.kl_estimate(old_BA, log_prob_BA, "k3")[mask_BA].mean()
    if kl_BA is not None:
        kl = torch.maximum(kl, kl_BA[mask_BA].mean())
    return {"clip_fraction": ppo.clip_fraction(log_prob_BA, old_BA, experience.advantages_BA, mask_BA, clip),
            "approx_kl": kl.item(), "mean_ratio": ratios_N.mean().item(),
            "first_ratio": ratios_N[(ratios_N - 1).abs().argmax()].item()}


def is_far(measured, config):
    """Whether a `distance` is too far: the KL beyond 1.5 times `old_kl` (as in StackLLaMA's program; 0: no such limit),
    or the mean ratio beyond `mean_ratio`. What is no number is too far."""
    near = measured["approx_kl"] <= 1.5 * config.old_kl or not config.old_kl
    return not (near and measured["mean_ratio"] <= config.mean_ratio)


@torch.no_grad()
def pull_back(optimizer, origins, beyond):
    """While beyond() holds, move an `AdamW`'s weights back to the first of `origins` (lists of weights): HALVINGS times
    half of the way, then all of it; then to the next. Returns the number of moves; Adam's m and v do not change."""
    moves = 0
    for origin in origins:
        for share in [0.5] * HALVINGS + [0.0]:
            if not beyond():
                return moves
            moves += 1
            _bring(optimizer, origin, share)
    return moves


@torch.no_grad()
def _bring(optimizer, origin, share=0.0):
    """Leave an `AdamW`'s weights a share of their way from an origin."""
    for weight, kept, parameter in zip(optimizer.weights, origin, optimizer.parameters, strict=True):
        weight.copy_(torch.lerp(kept, weight, share) if share else kept)
        parameter.copy_(weight)


class LastBatch:
    """The last check on a batch: the trust region is measured on the answers that were learned, and what became likely
    elsewhere shows in fresh ones alone. Where their KL to the reference is more than the target above that of the batch
    before, that batch is taken back, and from there on the rate is half.

    optimizer: the policy's; config: a `PPOConfig`. Without a KL penalty, a target or `old_kl` nothing is checked."""

    def __init__(self, optimizer, config):
        self.optimizer, self.kl, self.rate = optimizer, 0.0, 1.0
        self.bound = config.kl_target if config.kl_coefficient and config.old_kl else 0.0
        self.begin()

    def settle(self, sample, describe):
        """(experience, metrics): what sample() gives, what describe(experience) says of it. Where its "kl" is too far,
        the weights from before the last batch are put back, both are made anew, and "taken_back" is 1, else 0."""
        seen = describe(experience := sample())
        back = bool(self.bound) and not seen["kl"] <= self.kl + self.bound
        if back:
            _bring(self.optimizer, self.weights)
            self.rate /= 2
            seen = describe(experience := sample())
        self.kl = seen["kl"]
        return experience, {**seen, "taken_back": int(back)}

    @torch.no_grad()
    def begin(self):
        """A copy of the policy's weights, as a batch begins."""
        self.weights = [weight.clone() for weight in self.optimizer.weights]
        return self.weights

    def state_dict(self):
        return {"weights": self.weights, "numbers": torch.tensor([self.kl, self.rate], dtype=torch.float64)}

    def load_state_dict(self, state):
        self.weights, (self.kl, self.rate) = state["weights"], state["numbers"].tolist()
