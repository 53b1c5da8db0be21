"""Checks of exercise 25: pairs by hand, the loss against the library's, far out and in its gradient."""
import math

import torch

from minillama.course.exercise import Wrong, close
from minillama.rlhf.reward_model import preference_loss

HINTS = {
    "pairs": ("Look at every two answers; only those with different scores make a pair, the better one first.",
              "Sort by the difference of the scores, the largest first; Python's sort keeps equals in their order.",
              "Cut to `most` after sorting."),
    "loss": ("One coin toss: scores all alike lose log 2 = 0.693.",
             "L = -log sigmoid(chosen - rejected - margin): the margin makes the task harder.",
             "PyTorch has the logarithm of the sigmoid as one function, which does not overflow."),
    "gradient": ("The loss must stay a tensor that depends on the scores.",
                 "dL/d chosen = -(1 - sigmoid(chosen - rejected)) / B"),
    "accuracy": ("A model that gives all texts the same score has 0.5, not 0 and not 1.",),
}


def check_pairs(learner):
    close("pairs([])", learner.pairs([], 10), [], 0, 0)
    close("pairs([3, 3])", learner.pairs([3, 3], 10), [], 0, 0)
    close("pairs([1, 4])", learner.pairs([1, 4], 10), [(1, 0)], 0, 0)
    close("pairs([2, 5, -1, 2], 10)", learner.pairs([2, 5, -1, 2], 10),
          [(1, 2), (0, 2), (1, 0), (1, 3), (3, 2)], 0, 1)
    close("pairs([2, 5, -1, 2], 2)", learner.pairs([2, 5, -1, 2], 2), [(1, 2), (0, 2)], 0, 2)


def check_loss(learner):
    for dtype in (torch.float32, torch.float64):
        for B in (1, 7):
            chosen, rejected, margin = torch.randn(3, B, dtype=dtype, generator=torch.Generator().manual_seed(B))
            close("the loss of equal scores", learner.preference_loss(chosen, chosen),
                  torch.tensor(math.log(2), dtype=dtype), 1e-6, 0)
            close(f"the loss of {B} pairs", learner.preference_loss(chosen, rejected),
                  preference_loss(chosen, rejected), 1e-6, 1)
            close(f"the loss of {B} pairs with a margin", learner.preference_loss(chosen, rejected, margin),
                  preference_loss(chosen, rejected, margin), 1e-6, 1)
    far = learner.preference_loss(torch.tensor([-100.0, 100.0]), torch.tensor([100.0, -100.0]))
    close("the loss of a pair 200 points wrong and one 200 points right", far, torch.tensor(100.0), 1e-4, 2)


def check_gradient(learner):
    chosen = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    loss = learner.preference_loss(chosen, rejected)
    if not loss.requires_grad:
        raise Wrong("the loss does not depend on the scores any more: no gradient flows", 0)
    loss.backward()
    close("the gradient of the chosen scores", chosen.grad, -(1 - torch.sigmoid(chosen.detach() - rejected)) / 3, 1e-9,
          1)


def check_accuracy(learner):
    a, b = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 4.0, -1.0])
    close("accuracy with one tie", learner.accuracy(a, b), 0.625, 1e-12, 0)
    close("accuracy of equal scores", learner.accuracy(a, a), 0.5, 1e-12, 0)
    close("accuracy of one pair", learner.accuracy(a[:1], b[:1]), 1.0, 1e-12, 0)


WRONG = [
    ("if scores[i] > scores[j]]", "if scores[i] >= scores[j] and i != j]", "pairs", 0),
    ("scores[pair[1]] - scores[pair[0]])", "scores[pair[0]] - scores[pair[1]])", "pairs", 1),
    ("return found[:most]", "return found", "pairs", 2),
    ("torch.nn.functional.logsigmoid(difference)", "torch.log(torch.sigmoid(difference))", "loss", 2),
    ("chosen - rejected - (0.0", "chosen - rejected + (0.0", "loss", 1),
    ("logsigmoid(difference).mean()", "logsigmoid(difference).sum()", "loss", 0),
    ("difference = chosen - rejected", "difference = chosen.detach() - rejected", "gradient", 0),
    ("0.5 * (chosen == rejected).double()", "0.0", "accuracy", 0),
    ("0.5 * (chosen == rejected)", "1.0 * (chosen == rejected)", "accuracy", 0),
    ("- (0.0 if margin is None else margin)", "", "loss", 1),
]
