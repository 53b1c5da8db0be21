"""Checks of exercise 27: the loss and its gradient against the library's, the table of pulls against autograd."""
import math

import torch

from minillama.course.exercise import Wrong, close
from minillama.rlhf import ppo

HINTS = {
    "loss": ("rho is the ratio of the new probability to the old one, and the loss is minus the objective.",
             "The minimum is taken between rho A and clipped rho A, not between the ratios.",
             "Only real tokens count, in the sum and in the number it is divided by."),
    "gradient": ("The advantages and the old log-probabilities are given numbers: detach them.",
                 "NaN under the mask spoils a gradient even times 0: leave those places out before any arithmetic."),
    "pull": ("A good token (A > 0) is pulled up, a bad one down.",
             "A gain stops paying beyond the clip: a good token above 1 + clip, a bad one below 1 - clip.",
             "Where a token went the wrong way it is pulled back, however far it is."),
    "token_rewards": ("Each real token pays beta times (log_prob - ref).",
                      "The score is added once, at the last real token of its row.",
                      "Padding has reward 0."),
}


def batch(seed=0, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    new, old, advantages = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 1, 4, 2])[:, None]
    return spread * new - 2, spread * old - 2, advantages, mask


def check_loss(learner):
    one = torch.zeros(1, 1, dtype=torch.float64)
    everything = torch.ones(1, 1, dtype=torch.bool)
    close("the loss at ratio 1", learner.policy_loss(one, one, one + 2, everything, 0.2), -2 + one[0, 0], 1e-12, 0)
    for change, advantage in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
        case = one + change, one, one + advantage, everything, 0.2
        close(f"the loss at log ratio {change}, A = {advantage}", learner.policy_loss(*case), ppo.policy_loss(*case),
              1e-12, 1)
    for seed in range(3):
        new, old, advantages, mask = batch(seed)
        case = new, old, advantages, mask, 0.2
        close("the loss of a batch with padding", learner.policy_loss(*case), ppo.policy_loss(*case), 1e-12, 2)


def check_gradient(learner):
    new, old, advantages, mask = (x.requires_grad_() if x.is_floating_point() else x for x in batch(5))
    learner.policy_loss(new, old, advantages, mask, 0.2).backward()
    if old.grad is not None or advantages.grad is not None:
        raise Wrong("a gradient flows into the old log-probabilities or into the advantages", 0)
    wanted = new.detach().clone().requires_grad_()
    ppo.policy_loss(wanted, old, advantages, mask, 0.2).backward()
    close("the gradient of log_prob", new.grad, wanted.grad, 1e-12, 0)
    new = new.detach().masked_fill(~mask, math.nan).requires_grad_()
    learner.policy_loss(new, old.detach(), advantages.detach(), mask, 0.2).backward()
    close("the gradient with NaN on padding", new.grad, wanted.grad, 1e-12, 1)


def check_pull(learner):
    for advantage in (2.0, -2.0, 0.5, -0.1):
        for ratio in (0.1, 0.79, 0.81, 1.0, 1.19, 1.21, 5.0):
            rho = torch.tensor(ratio, requires_grad=True)
            torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage).backward()
            wanted = int(rho.grad.sign())
            hint = 0 if ratio == 1.0 else 1 if wanted == 0 else 2
            close(f"pull({ratio}, {advantage}, 0.2)", learner.pull(ratio, advantage, 0.2), wanted, 0, hint)
    close("pull(1.05, 1.0, 0.1)", learner.pull(1.05, 1.0, 0.1), 1, 0, 0)
    close("pull(1.15, 1.0, 0.1)", learner.pull(1.15, 1.0, 0.1), 0, 0, 1)


def check_token_rewards(learner):
    new, ref, _, mask = batch(3)
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    none = 0 * scores
    got, wanted = learner.token_rewards(none, new, ref, mask, 0.3), ppo.token_rewards(none, new, ref, mask, 0.3)
    close("rewards on padding", got[~mask], wanted[~mask], 0, 2)
    close("rewards without scores", got, wanted, 1e-12, 0)
    close("rewards", learner.token_rewards(scores, new, ref, mask, 0.3), ppo.token_rewards(scores, new, ref, mask, 0.3),
          1e-12, 1)


WRONG = [
    ("return -torch.minimum(", "return torch.minimum(", "loss", 0),
    ("torch.minimum(ratio * advantages, ", "torch.maximum(ratio * advantages, ", "loss", 1),
    ("* advantages).mean()", "* advantages).sum() / mask_BT.numel()", "loss", 2),
    ("advantages_BT[mask_BT].detach()", "advantages_BT[mask_BT]", "gradient", 0),
    ("1 if ratio < 1 + clip else 0", "1 if 1 - clip < ratio < 1 + clip else 0", "pull", 2),
    ("-1 if ratio > 1 - clip else 0", "-1", "pull", 1),
    ("last_B = mask_BT.sum(1) - 1", "last_B = mask_BT.sum(1) * 0 - 1", "token_rewards", 1),
    (".masked_fill(~mask_BT, 0.0)", "", "token_rewards", 2),
    ("-beta * (log_prob_BT - ref_log_prob_BT)", "beta * (log_prob_BT - ref_log_prob_BT)", "token_rewards", 0),
    ("(log_prob - old).exp()", "log_prob - old", "loss", 0),
    ("ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(max=1 + clip)", "loss", 1),
    ("1 if ratio < 1 + clip else 0", "1 if ratio < 1 + clip else -1", "pull", 1),
    ("-beta * (log_prob_BT", "-(log_prob_BT", "token_rewards", 0),
]
