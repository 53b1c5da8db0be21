"""Exercise 16, solved: the tokens that bring a model to a loss, and the model that is cheapest in all."""
import math


def tokens_for(law, N, loss):
    """D, a float: how many tokens a model of N parameters must read to reach the loss; float("inf") if it cannot."""
    E, A, B, alpha, beta = law
    rest = loss - E - A / N**alpha
    return (B / rest) ** (1 / beta) if rest > 0 else math.inf


def cheapest(law, loss, served):
    """(N, D), floats: the model that reaches the loss at the least 6 N D + 2 N served FLOPs."""
    def cost(n):
        N = math.exp(n)
        return 6 * N * tokens_for(law, N, loss) + 2 * N * served

    low, high = math.log(1e3), math.log(1e15)
    while high - low > 1e-7:
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if cost(a) <= cost(b) and cost(a) < math.inf:
            high = b
        else:
            low = a
    N = math.exp(low)
    return N, tokens_for(law, N, loss)
