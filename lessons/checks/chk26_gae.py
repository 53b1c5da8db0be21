"""Checks of exercise 26: one step, the paper's sum, both ends of lambda, padding of every kind."""
import math

import torch

from minillama.course.exercise import Wrong, close

HINTS = {
    "shapes": ("Both results have the shape and dtype of the rewards; the returns come second.",),
    "one_token": ("Behind the last token there is nothing: its value and its advantage are 0.",
                  "A = r - V for an answer of one token, and R = A + V = r."),
    "whole_rows": ("Run from the last token to the first and carry two numbers along: the value and the advantage of "
                   "the token behind.",
                   "gamma discounts the value behind, gamma times lambda the advantage behind.",
                   "delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma lam A_(t+1), R_t = A_t + V_t"),
    "padding": ("What stands on padding must not flow into the tokens before it: put zeros there before any "
                "arithmetic (NaN times 0 is NaN).",
                "An answer ends with its last real token: on padding the carried value and advantage are 0.",
                "Both results are 0 where the mask is False, at the front as well."),
}


def batch(lengths, slots, before=0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), slots, generator=generator, dtype=dtype)
    places = torch.arange(slots)
    return rewards, values, (places >= before) & (places < before + torch.tensor(lengths)[:, None])


def double_sum(rewards, values, mask, gamma, lam):
    """The definition, written as sums over the real tokens of each row."""
    wanted = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        real = mask[b].nonzero().flatten().tolist()
        r, v = rewards[b, real].tolist(), values[b, real].tolist() + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(r))]
        for i, t in enumerate(real):
            wanted[b, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:]))
    return wanted, (wanted + values).masked_fill(~mask, 0.0)


def compare(learner, case, gamma, lam, hint):
    got, wanted = learner.gae(*case, gamma, lam), double_sum(*case, gamma, lam)
    said = f"with gamma {gamma}, lambda {lam}"
    close(f"advantages {said}", got[0], wanted[0], 1e-12, hint)
    close(f"returns {said}", got[1], wanted[1], 1e-12, hint)


def check_shapes(learner):
    for dtype in (torch.float32, torch.float64):
        got = learner.gae(*batch([3, 3], 3, dtype=dtype), 1.0, 0.95)
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"gae must return a tuple (advantages, returns), not {type(got).__name__}", 0)
        if any(x.shape != (2, 3) or x.dtype != dtype for x in got):
            raise Wrong(f"expected shape (2, 3) and {dtype}, got {[(tuple(x.shape), x.dtype) for x in got]}", 0)


def check_one_token(learner):
    got = learner.gae(*batch([1], 1), 1.0, 0.95)
    rewards, values, _ = batch([1], 1)
    if torch.allclose(got[0], rewards) and torch.allclose(got[1], rewards - values):
        raise Wrong("the first result is the return r, wanted the advantage r - V: are the two swapped?", 1)
    compare(learner, batch([1], 1), 1.0, 0.95, 0)


def check_whole_rows(learner):
    for gamma, lam in ((1.0, 0.0), (0.9, 0.0), (1.0, 1.0), (0.9, 0.7)):
        compare(learner, batch([5], 5), gamma, lam, 0 if lam == 0 else 1)
    compare(learner, batch([17, 17, 17], 17, seed=1), 0.99, 0.95, 2)


def check_padding(learner):
    compare(learner, batch([2, 5, 1], 5, seed=2), 1.0, 0.95, 1)
    compare(learner, batch([2, 4, 1], 7, before=2, seed=3), 0.9, 0.95, 2)
    rewards, values, mask = batch([2, 5, 1], 7, before=1, seed=4)
    wanted = double_sum(rewards, values, mask, 0.9, 0.8)
    got = learner.gae(rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.nan), mask, 0.9, 0.8)
    for name, mine, theirs in zip(("advantages", "returns"), got, wanted, strict=True):
        close(f"{name} with NaN on padding", mine, theirs, 1e-12, hint=0)


WRONG = [
    ("return advantages_BT, advantages_BT + values_BT", "return advantages_BT + values_BT, advantages_BT",
     "one_token", 1),
    ("next_value_B = torch.zeros_like(rewards_BT[:, 0])", "next_value_B = values_BT[:, -1]", "one_token", 0),
    ("reversed(range(rewards_BT.shape[1]))", "range(rewards_BT.shape[1])", "whole_rows", 0),
    ("delta_B + gamma * lam *", "delta_B + lam *", "whole_rows", 1),
    ("rewards_BT[:, t] + gamma * next_value_B", "rewards_BT[:, t] + next_value_B", "whole_rows", 0),
    ("torch.where(mask_BT[:, t], advantage_B, 0.0)", "advantage_B", "padding", 2),
    ("values_BT = values_BT.masked_fill(~mask_BT, 0.0)", "values_BT = values_BT * 1", "padding", 1),
    ("values_BT.masked_fill(~mask_BT, 0.0)", "values_BT * mask_BT", "padding", 0),
    (" - values_BT[:, t]\n", "\n", "one_token", 0),
    ("return advantages_BT, advantages_BT + values_BT", "return advantages_BT, advantages_BT", "one_token", 0),
    (" + gamma * lam * next_advantage_B\n", "\n", "whole_rows", 1),
    ("advantages_BT[:, t] = next_advantage_B", "advantages_BT[:, t] = delta_B", "whole_rows", 1),
    ("        next_value_B = values_BT[:, t]  # 0 on padding\n", "", "whole_rows", 0),
]
