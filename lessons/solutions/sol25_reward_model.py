"""Exercise 25, solved: pairs from votes, and a preference loss that is finite everywhere."""
import torch


def pairs(scores, most):
    """All (better, worse) index pairs whose scores differ, the largest difference first, at most `most`."""
    found = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if scores[i] > scores[j]]
    found.sort(key=lambda pair: scores[pair[1]] - scores[pair[0]])
    return found[:most]


def preference_loss(chosen, rejected, margin=None):
    """Mean of -log sigmoid(chosen - rejected - margin)."""
    difference = chosen - rejected - (0.0 if margin is None else margin)
    return -torch.nn.functional.logsigmoid(difference).mean()


def accuracy(chosen, rejected):
    """Share of pairs in which the chosen text scores higher, a tie counting one half."""
    return ((chosen > rejected).double() + 0.5 * (chosen == rejected).double()).mean().item()
