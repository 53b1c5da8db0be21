"""Checks of exercise 28: against all draws enumerated, and the library's best of n."""
import itertools
import math

import torch

from lessons.other_feedback import best_of_n_bound, best_of_n_policy, kl_divergence
from minillama.course.exercise import Wrong, close

HINTS = {
    "best_of_n": ("All n draws have at most s points with probability F(s) to the power n.",
                  "The best has exactly s points: take away the case that all have fewer.",
                  "Texts of equal score share its probability in proportion to p."),
    "bound": ("It is 0 for n = 1: with one draw nothing is chosen.", "The logarithm of n, less (n - 1) / n."),
    "kl": ("The mean is taken over q, the new distribution.", "A text that q never writes adds 0, not NaN."),
    "curve": ("The first of each pair is the KL, measured from p.", "The second is the mean score under best of n."),
}


def task(K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p_K = torch.rand(K, generator=generator, dtype=torch.float64)
    return p_K / p_K.sum(), torch.randint(0, 3, (K,), generator=generator).double()


def check_best_of_n(learner):
    p_K, scores_K = task(3, 4)
    scores_K = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    wanted = torch.zeros_like(p_K)
    for drawn in itertools.product(range(3), repeat=2):
        wanted[max(drawn)] += p_K[list(drawn)].prod()
    close("best of 2 of three texts", learner.best_of_n(p_K, scores_K, 2), wanted, 1e-12, 1)
    close("best of 1", learner.best_of_n(p_K, scores_K, 1), p_K, 1e-12, 0)
    for K in (1, 2, 7, 13):
        p_K, scores_K = task(K, K)
        for n in (1, 2, 5):
            close(f"best of {n} of {K} texts with ties", learner.best_of_n(p_K, scores_K, n),
                  best_of_n_policy(p_K, scores_K, n), 1e-12, 2)
    never = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    scores_K = torch.tensor([0.0, 1.0, 9.0], dtype=torch.float64)
    close("a text that is never written", learner.best_of_n(never, scores_K, 3), best_of_n_policy(never, scores_K, 3),
          1e-12, 2)


def check_bound(learner):
    close("bound(1)", float(learner.bound(1)), 0.0, 1e-12, 0)
    for n in (2, 4, 16, 64):
        close(f"bound({n})", float(learner.bound(n)), best_of_n_bound(n), 1e-12, 1)


def check_kl(learner):
    p_K, _ = task(7, 1)
    q_K, _ = task(7, 2)
    close("KL of two distributions", float(learner.kl(q_K, p_K)), kl_divergence(q_K, p_K), 1e-12, 0)
    half = torch.tensor([1.0, 0.0], dtype=torch.float64)
    got = float(learner.kl(half, torch.tensor([0.5, 0.5], dtype=torch.float64)))
    if math.isnan(got):
        raise Wrong("the KL is NaN where q is 0", 1)
    close("KL of a certain text", got, math.log(2), 1e-12, 1)


def check_curve(learner):
    p_K, scores_K = task(13, 3)
    got = learner.curve(p_K, scores_K, [1, 2, 8])
    for n, (nats, mean) in zip([1, 2, 8], got, strict=True):
        q_K = best_of_n_policy(p_K, scores_K, n)
        close(f"the KL at n = {n}", float(nats), kl_divergence(q_K, p_K), 1e-12, 0)
        close(f"the mean score at n = {n}", float(mean), (q_K @ scores_K).item(), 1e-12, 1)


WRONG = [
    (" - (upto - at).clamp(min=0) ** n", "", "best_of_n", 1),
    ("p_K[scores_K == s] / at * (", "1.0 * (", "best_of_n", 2),
    ("math.log(n) - (n - 1) / n", "math.log(n)", "bound", 1),
    ("math.log(n) - (n - 1) / n", "math.log(n) - (n - 1) / n + 1 / n", "bound", 0),
    ("q_K[written] * (q_K[written] / p_K[written])", "p_K[written] * (q_K[written] / p_K[written])", "kl", 0),
    ("written = q_K > 0", "written = q_K >= 0", "kl", 1),
    ("(kl(q_K, p_K), (q", "(kl(p_K, q_K), (q", "curve", 0),
    ("(q_K * scores_K).sum()", "(p_K * scores_K).sum()", "curve", 1),
    ("math.log(n) - (n - 1) / n", "math.log2(n) - (n - 1) / n", "bound", 1),
    ("math.log(n) - (n - 1) / n", "math.log(n) - (n - 1)", "bound", 1),
    ("(q_K[written] / p_K[written]).log()", "(p_K[written] / q_K[written]).log()", "kl", 0),
    (".log()).sum()", ".log()).mean()", "kl", 0),
    ("best_of_n(p_K, scores_K, n) for", "best_of_n(p_K, scores_K, n + 1) for", "curve", 0),
]
