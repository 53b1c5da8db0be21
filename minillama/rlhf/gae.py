"""How much better an action was than expected: generalised advantage estimation over an answer's tokens."""

import torch

from minillama.config_checks import Range, check


@torch.no_grad()
def gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=0.95):
    """Advantages and returns of every real token, both (B, T) and at least fp32, without gradient.

        delta_t = r_t + gamma V_(t+1) - V_t
        A_t = sum_l (gamma lam)^l delta_(t+l)                             (arXiv 1506.02438 eq. 16)

    computed backwards as A_t = delta_t + gamma lam A_(t+1). The return R_t = A_t + V_t is what the value head learns.
    An answer ends with its last real token, so the value after it is 0; tokens outside the mask (bool: padding before,
    after or between) are stepped over: whatever stands there changes nothing, and both results are 0 there.

    `lam` trades bias for variance: 1 is the Monte Carlo return minus V_t (unbiased, noisy), 0 the one-step error.
    gamma 1 because an answer is short and judged once, at its end; 0.95 is the usual lam for language (1909.08593).

    >>> rewards, values, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3), torch.tensor([[True] * 3])
    >>> gae(rewards, values, mask, lam=0.5)[0]
    tensor([[0.2500, 0.5000, 1.0000]])
    """
    shapes = [tuple(x.shape) for x in (rewards_BT, values_BT, mask_BT)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"rewards, values and mask have shapes {shapes}: expected one (batch, time)")
    if mask_BT.dtype != torch.bool:
        raise TypeError(f"the mask has dtype {mask_BT.dtype}: pass a bool tensor, True on real tokens")
    check("gamma", gamma, float, Range(0, 1))
    check("lam", lam, float, Range(0, 1))
    dtype = torch.promote_types(torch.promote_types(rewards_BT.dtype, values_BT.dtype), torch.float32)
    rewards_BT, values_BT = rewards_BT.to(dtype), values_BT.to(dtype)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = next_advantage_B = rewards_BT.new_zeros(len(rewards_BT))
    for t in reversed(range(rewards_BT.shape[1])):
        real_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(real_B, delta_B + gamma * lam * next_advantage_B, next_advantage_B)
        next_value_B = torch.where(real_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = next_advantage_B
    returns_BT = advantages_BT + values_BT
    return advantages_BT.masked_fill(~mask_BT, 0.0), returns_BT.masked_fill(~mask_BT, 0.0)
