"""Exercise 28, solved: best of n, what it costs, and what it brings."""
import math

import torch


def best_of_n(p_K, scores_K, n):
    """Probability of each text to be the best of n draws."""
    best_K = torch.zeros_like(p_K)
    for s in scores_K.unique():
        at, upto = p_K[scores_K == s].sum(), p_K[scores_K <= s].sum()
        if at > 0:
            best_K[scores_K == s] = p_K[scores_K == s] / at * (upto**n - (upto - at).clamp(min=0) ** n)
    return best_K


def bound(n):
    """log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def kl(q_K, p_K):
    """sum q log(q / p)."""
    written = q_K > 0
    return (q_K[written] * (q_K[written] / p_K[written]).log()).sum().item()


def curve(p_K, scores_K, ns):
    """[(kl, mean score), ...]."""
    made = [best_of_n(p_K, scores_K, n) for n in ns]
    return [(kl(q_K, p_K), (q_K * scores_K).sum().item()) for q_K in made]
