"""Exercise 26, solved: advantages of answers of unequal length."""
import torch


def gae(rewards_BT, values_BT, mask_BT, gamma, lam):
    """Generalised advantage estimation over the real tokens of each row: (advantages, returns), both (B, T)."""
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        next_advantage_B = torch.where(mask_BT[:, t], advantage_B, 0.0)
        next_value_B = values_BT[:, t]  # 0 on padding
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, advantages_BT + values_BT
