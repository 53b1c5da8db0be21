"""PPO's trust region: a step that carries the policy too far is halved, as in TRPO's line search (arXiv 1502.05477,
appendix C). The clip of PPO's loss bounds no step: it takes the gradient of a token away once its ratio has moved.
"""

import torch

from minillama.rlhf import ppo

HALVINGS = 6  # of a step, before it is taken back whole


@torch.no_grad()
def distance(log_prob_BA, experience, clip):
    """How far a policy that gives an `Experience`'s answers these log-probabilities is from the one that sampled them:
    {"clip_fraction", "approx_kl": nats a token, by k3, "first_ratio": the farthest from 1}."""
    mask_BA, old_BA = experience.rollout.answer_mask_BA, experience.log_prob_BA
    ratios_N = (log_prob_BA - old_BA)[mask_BA].exp()
    return {"clip_fraction": ppo.clip_fraction(log_prob_BA, old_BA, experience.advantages_BA, mask_BA, clip),
            "approx_kl": ppo.masked_mean(ppo.kl_estimate(old_BA, log_prob_BA, "k3"), mask_BA).item(),
            "first_ratio": ratios_N[(ratios_N - 1).abs().argmax()].item()}


@torch.no_grad()
def is_far(log_prob_BA, experience, config):
    """Whether that is too far: "approx_kl" beyond 1.5 times `old_kl` (as in StackLLaMA's program; 0: any will do), or
    the mean ratio beyond `mean_ratio`. What is no number is too far."""
    kl = distance(log_prob_BA, experience, config.clip)["approx_kl"]
    ratio = (log_prob_BA - experience.log_prob_BA)[experience.rollout.answer_mask_BA].exp().mean()
    return not ((kl <= 1.5 * config.old_kl or not config.old_kl) and ratio <= config.mean_ratio)


@torch.no_grad()
def hold(optimizer, origins, beyond):
    """Bring an `AdamW`'s weights towards the first of origins, lists of weights, while beyond(): halfway, HALVINGS
    times, then all the way; then towards the next -> how many times. Adam's means stay as they are."""
    moves = 0
    for origin in origins:
        for share in [0.5] * HALVINGS + [0.0]:
            if not beyond():
                return moves
            moves += 1
            for weight, kept, parameter in zip(optimizer.weights, origin, optimizer.parameters, strict=True):
                weight.copy_(torch.lerp(kept, weight, share) if share else kept)
                parameter.copy_(weight)
    return moves
