"""Exercise 16: the tokens that bring a model to a loss, and the model that is cheapest in all (lesson 16).

A law is a tuple (E, A, B, alpha, beta): loss(N, D) = E + A / N^alpha + B / D^beta. Training costs 6 N D FLOPs, a served
token 2 N.
"""


def tokens_for(law, N, loss):
    """D, a float: how many tokens a model of N parameters must read to reach the loss; float("inf") if it cannot."""
    raise NotImplementedError("your code here")


def cheapest(law, loss, served):
    """(N, D), floats: the model that reaches the loss at the least 6 N D + 2 N served FLOPs, N right to 1 in 1,000.

    N is between 1e3 and 1e15. The cost first falls with N, then rises.
    """
    raise NotImplementedError("your code here")
