"""Exercise 27, solved: PPO's clipped loss, and when it pulls."""
import torch


def policy_loss(log_prob_BT, old_log_prob_BT, advantages_BT, mask_BT, clip):
    """-mean over real tokens of min(rho A, clip(rho, 1 - clip, 1 + clip) A)."""
    log_prob, old = log_prob_BT[mask_BT], old_log_prob_BT[mask_BT].detach()
    advantages = advantages_BT[mask_BT].detach()
    ratio = (log_prob - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def pull(ratio, advantage, clip):
    """Which way the loss pulls a token's probability: 1 up, -1 down, 0 not at all."""
    if advantage > 0:
        return 1 if ratio < 1 + clip else 0
    if advantage < 0:
        return -1 if ratio > 1 - clip else 0
    return 0


def token_rewards(score_B, log_prob_BT, ref_log_prob_BT, mask_BT, beta):
    """Reward of each token: the price of the KL, and the score at the last real token."""
    rewards_BT = (-beta * (log_prob_BT - ref_log_prob_BT)).masked_fill(~mask_BT, 0.0)
    last_B = mask_BT.sum(1) - 1
    rewards_BT[torch.arange(len(last_B)), last_B] += score_B
    return rewards_BT
