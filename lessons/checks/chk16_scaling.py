"""Checks of exercise 16: tokens put back into the law, and the cheapest model against every size of a fine grid."""
import math

from minillama.course.exercise import Wrong, close

LAWS = ((1.69, 406.4, 410.7, 0.34, 0.28), (1.8172, 482.01, 2085.43, 0.3478, 0.3658), (0.5, 3.0, 20.0, 0.4, 0.6))
HINTS = {
    "tokens": ("Take E and A / N^alpha off the loss; what is left is B / D^beta. Solve it for D.",
               "A power is undone by its inverse: D^beta = x means D = x^(1/beta).",
               "Where nothing is left, or less, no number of tokens is enough: float('inf')."),
    "cheapest": ("For each N there is one D that reaches the loss: the cost is a function of N alone.",
                 "Training counts 6 N D, with D from tokens_for; use counts 2 N for each served token.",
                 "Search in ln N: sizes span twelve powers of ten. Where the cost is infinite, N is too small."),
}


def loss_of(law, N, D):
    return law[0] + law[1] / N ** law[3] + law[2] / D ** law[4]


def check_tokens(learner):
    flat = 0.5, 3.0, 20.0, 1.0, 1.0  # without powers
    close("tokens_for(E = 0.5, A = 3, B = 20, alpha = beta = 1, N = 6, loss = 3)", learner.tokens_for(flat, 6.0, 3.0),
          10.0, 1e-9, hint=0)
    for law in LAWS:
        for N in (1e9, 7e9, 3e11):
            wanted = 2e11
            got = learner.tokens_for(law, N, loss_of(law, N, wanted))
            close(f"tokens_for(N = {N:.0e}) as a part of {wanted:.0e}", got / wanted, 1.0, 1e-6, hint=1)
        for what, loss in (("a loss below E + A / N^alpha", law[0] + 1e-6), ("the loss E", law[0])):
            close(f"tokens_for {what}", learner.tokens_for(law, 1e4, loss), math.inf, 0, hint=2)


def _cost(law, N, loss, served):
    rest = loss - law[0] - law[1] / N ** law[3]
    return 6 * N * (law[2] / rest) ** (1 / law[4]) + 2 * N * served if rest > 0 else math.inf


def check_cheapest(learner):
    for law in LAWS:
        loss = loss_of(law, 7e9, 1e12)
        for served, hint in ((0, 0), (1e12, 1), (1e14, 1)):
            grid = [10 ** (3 + i / 2000) for i in range(24001)]
            wanted = min(grid, key=lambda N, law=law, served=served: _cost(law, N, loss, served))
            N, D = learner.cheapest(law, loss, served)
            if _cost(law, N, loss, served) == math.inf:
                raise Wrong(f"cheapest(served = {served:.0e}) gives N = {N:.4g}, which never reaches the loss", 2)
            if not abs(N / wanted - 1) < 4e-3:
                raise Wrong(f"cheapest(served = {served:.0e}) gives N = {N:.4g}, wanted {wanted:.4g}", hint)
            if not abs(loss_of(law, N, D) / loss - 1) < 1e-6:
                raise Wrong(f"N = {N:.4g} with D = {D:.4g} has loss {loss_of(law, N, D):.6g}, wanted {loss:.6g}", 0)


WRONG = [
    ("(B / rest) ** (1 / beta) if rest > 0", "(B / rest) ** beta if rest > 0", "tokens", 1),
    ("if rest > 0 else math.inf", "if rest > 0 else 0.0", "tokens", 2),
    ("+ 2 * N * served", "+ 2 * served", "cheapest", 1),
    ("return N, tokens_for(law, N, loss)", "return N, served", "cheapest", 0),
    ("    while high - low > 1e-7:", "    while high - low > 25:", "cheapest", 2),
    ("loss - E - A", "loss - A", "tokens", 0),
    ("loss - E - A / N**alpha", "loss - E", "tokens", 0),
    ("(B / rest)", "(rest / B)", "tokens", 0),
    ("A / N**alpha", "A * N**alpha", "tokens", 0),
    ("(1 / beta)", "(1 / alpha)", "tokens", 1),
    ("return 6 * N * tokens", "return N * tokens", "cheapest", 1),
    ("+ 2 * N * served", "+ 6 * N * served", "cheapest", 1),
    ("math.log(1e15)", "math.log(1e9)", "cheapest", 0),
]
