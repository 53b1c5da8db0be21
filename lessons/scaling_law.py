"""Scaling laws: a loss that falls with the number of parameters N and of training tokens D, fitted and used.

    loss(N, D) = E + A / N^alpha + B / D^beta            arXiv 2203.15556, equation 2, fitted as in its section D.2

N and D cost 6 N D FLOPs of training, and 2 N for each token that is served later (arXiv 2203.15556, appendix F).
"""

import math
from itertools import product
from typing import NamedTuple

import torch

DELTA = 1e-3  # of the Huber loss: beyond a thousandth, errors of the logarithm count by their size, not their square
STARTS = tuple(product((2.0, 8.0), (2.0, 8.0), (0.4,), (0.4,)))  # of ln A, ln B, alpha, beta


class ScalingLaw(NamedTuple):
    """The five numbers of a law."""

    E: float  # what no model can go below
    A: float
    B: float
    alpha: float
    beta: float


HOFFMANN = ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)  # arXiv 2203.15556, approach 3, as printed
BESIROGLU = ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # arXiv 2404.10102, table 1
ERRORS = ScalingLaw(0.03, 124.58, 1293.23, 0.02, 0.02)  # its standard errors


def loss_of(law, N, D):
    """The loss that a law predicts; numbers or tensors."""
    return law.E + law.A / N**law.alpha + law.B / D**law.beta


def best_size(law, flops):
    """(N, D) of the least loss for a budget: the derivative along 6 N D = flops is zero (arXiv 2203.15556, eq. 4)."""
    N = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    N *= (flops / 6) ** (law.beta / (law.alpha + law.beta))
    return N, flops / (6 * N)


def tokens_for(law, N, loss):
    """D that brings a model of N parameters to a loss; infinite where it never gets there."""
    rest = loss - law.E - law.A / N**law.alpha
    return (law.B / rest) ** (1 / law.beta) if rest > 0 else math.inf


def cheapest(law, loss, served):
    """(N, D) that reaches a loss at the least 6 N D + 2 N served FLOPs: a ternary search over ln N.

    The sum falls and then rises in ln N: from infinity, where N alone cannot reach the loss, to infinity."""
    low = math.log((law.A / (loss - law.E)) ** (1 / law.alpha)) + 1e-9  # below it no number of tokens is enough
    high = low + 20
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        costs = [math.exp(n) * (6 * tokens_for(law, math.exp(n), loss) + 2 * served) for n in (a, b)]
        low, high = (low, b) if costs[0] < costs[1] else (a, high)
    N = math.exp(low)
    return N, tokens_for(law, N, loss)


def break_even(law, N, D):
    """(N', D', served): the compute-optimal model of equal loss, and the number of served tokens from which the given
    one is cheaper in all, 6 N D + 2 N served = 6 N' D' + 2 N' served. Infinite for a model that is not smaller."""
    other, other_D = cheapest(law, loss_of(law, N, D), 0)
    served = 3 * (N * D - other * other_D) / (other - N) if other > N else math.inf
    return other, other_D, served


def fit(N, D, loss, E=None, starts=STARTS, weights=None):
    """The law whose logarithm is closest to that of the losses: sum of Huber losses, L-BFGS from several starts.

    N, D, loss: lists or tensors of equal length. With E (a known entropy) what is fitted is the logarithm of
    loss - E; else E is a fifth number to be found. `weights` counts each point so many times (for a bootstrap)."""
    n, d, y = (torch.as_tensor(values, dtype=torch.float64) for values in (N, D, loss))
    n, d, y = n.log(), d.log(), (y if E is None else y - E).log()
    counts = torch.ones_like(y) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    best = None
    for start in starts:
        p = torch.tensor([*start, *([0.0] if E is None else [])], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([p], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, history_size=20,
                                      line_search_fn="strong_wolfe")

        def error(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            terms = [p[0] - p[2] * n, p[1] - p[3] * d, *([p[4].expand_as(n)] if E is None else [])]
            off = torch.stack(terms).logsumexp(0) - y
            total = (counts * torch.nn.functional.huber_loss(off, 0 * off, reduction="none", delta=DELTA)).sum()
            total.backward()
            return total

        optimizer.step(error)
        value = error().item()
        if best is None or value < best[0]:
            best = value, p.detach().tolist()
    a, b, alpha, beta, *e = best[1]
    return ScalingLaw(math.exp(e[0]) if e else E, math.exp(a), math.exp(b), alpha, beta)
