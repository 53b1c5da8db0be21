"""Best of n in closed form: what a judge's choice among n answers makes of a policy, and how far it moves it.

Best of n as it is sampled, and the other ways beside PPO (expert iteration, a written rule, DPO's training, chain of
hindsight) need nothing but PPO's parts, `dpo` and `sft.fine_tune`: they stand beside lesson 28, in
lessons/other_feedback.py.
"""

import math

import torch


def best_of_n_policy(p_K, scores_K, n):
    """Probabilities of the best of n draws from a distribution over K texts, (K,) fp64.

    The best has at most the score s in F(s)^n of all cases, F the distribution of the scores. Texts of one score share
    what it gets in proportion to p.

    >>> best_of_n_policy(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, 2.0]), 2)
    tensor([0.2500, 0.3125, 0.4375], dtype=torch.float64)
    """
    p_K = p_K.double()
    if n < 1 or p_K.shape != scores_K.shape or (p_K < 0).any() or abs(p_K.sum().item() - 1) > 1e-6:
        raise ValueError(f"n is {n}, probabilities {tuple(p_K.shape)} sum to {p_K.sum().item():.6f}, scores "
                         f"{tuple(scores_K.shape)}: allowed are n >= 1 and a distribution with one score each")
    _, level_K = scores_K.unique(return_inverse=True)  # sorted
    mass_L = p_K.new_zeros(int(level_K.max()) + 1).index_add(0, level_K, p_K)
    upto_L = mass_L.cumsum(0).clamp(max=1.0)
    best_L = upto_L.pow(n) - (upto_L - mass_L).clamp(min=0.0).pow(n)
    return p_K * (best_L / mass_L.clamp(min=1e-300))[level_K]


def best_of_n_bound(n):
    """log n - (n - 1) / n, nats: the KL from the policy to its best of n (2112.09332, section 3) where no two draws are
    ever alike; where they can be, it is an upper bound (2401.01879)."""
    return math.log(n) - (n - 1) / n


def kl_divergence(p_K, q_K):
    """sum p log(p / q), nats; a text that p never writes adds 0."""
    return torch.special.xlogy(p_K, p_K / q_K.to(p_K.dtype).where(p_K > 0, 1)).sum().item()
