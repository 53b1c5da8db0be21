"""Exercise 28: best of n, what it costs, and what it brings (lesson 28)."""


def best_of_n(p_K, scores_K, n):
    """Probability of each of K texts to be the best of n draws from p, (K,) fp64.

    p_K: (K,) fp64, probabilities; some may be 0. scores_K: (K,) fp64, some may be equal: such texts share what their
    score gets in proportion to p. n: int, 1 or more.
    """
    raise NotImplementedError("your code here")


def bound(n):
    """The KL of best of n where no two draws are ever alike, nats: a float. n: int."""
    raise NotImplementedError("your code here")


def kl(q_K, p_K):
    """KL(q, p) in nats, a float. Both (K,) fp64; where q is 0 nothing is added, whatever p is there."""
    raise NotImplementedError("your code here")


def curve(p_K, scores_K, ns):
    """The curve of the lesson's figure: for each n of the list ns a pair (KL from p, mean score), floats."""
    raise NotImplementedError("your code here")
