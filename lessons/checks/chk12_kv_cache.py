"""Checks of exercise 12: contents and order before and after the cache is full, and its memory."""

import torch

from minillama.course.exercise import Wrong, close

HINTS = {
    "filling": (
        "Until the window is full, the cache just grows: return only the places that are filled.",
        "append returns the new token too: store first, then read.",
    ),
    "rolling": (
        "Token number n can lie at place n % window: which tokens are left, and where do they lie?",
        "The buffer is out of order once it rolls: the oldest token lies just behind the newest.",
        "The tokens left are max(0, seen - window) to seen - 1; index the buffer by these numbers modulo window.",
    ),
    "memory": (
        "Keep two tensors of `window` places, made once in __init__, and overwrite.",
    ),
}


def _run(learner, window, steps, batch=2, heads=3, width=4, dtype=torch.float64):
    """Append `steps` tokens; yields (step, got, wanted keys and values)."""
    cache = learner.RollingCache(window, batch, heads, width, dtype)
    k, v = torch.randn(2, batch, heads, steps, width, dtype=dtype)
    for step in range(steps):
        got = cache.append(k[:, :, step].clone(), v[:, :, step].clone())
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"append returned {type(got).__name__}: return (keys, values)", 0)
        seen = slice(max(0, step + 1 - window), step + 1)
        yield step, got, (k[:, :, seen], v[:, :, seen])


def check_filling(learner):
    for window, batch, dtype in ((1, 1, torch.float64), (5, 2, torch.float32), (7, 1, torch.float64)):
        for step, got, wanted in _run(learner, window, window, batch, dtype=dtype):
            empty = torch.is_tensor(got[0]) and got[0].shape[2:3] != wanted[0].shape[2:3]
            for name, mine, theirs in zip(("keys", "values"), got, wanted, strict=True):
                close(f"{name} after token {step} in a window of {window}", mine, theirs, 0.0, hint=0 if empty else 1)


def check_rolling(learner):
    for window, steps in ((1, 4), (2, 7), (5, 23)):
        for step, got, wanted in _run(learner, window, steps):
            for name, mine, theirs in zip(("keys", "values"), got, wanted, strict=True):
                same = torch.is_tensor(mine) and mine.shape == theirs.shape and torch.equal(
                    mine.sum(2).round(decimals=6), theirs.sum(2).round(decimals=6))
                close(f"{name} after token {step} in a window of {window}", mine, theirs, 0.0, hint=1 if same else 0)


def check_memory(learner):
    cache = learner.RollingCache(4, 1, 2, 8, torch.float32)
    for _ in range(50):
        cache.append(torch.ones(1, 2, 8), torch.ones(1, 2, 8))
    held = 0
    for value in vars(cache).values():
        items = value if isinstance(value, (list, tuple)) else [value]
        held += sum(item.untyped_storage().nbytes() // 4 for item in items if torch.is_tensor(item))
    if held > 2 * 2 * 5 * 8 + 8:  # one place more, for those who join first and cut then
        raise Wrong(f"after 50 tokens the cache holds {held} numbers, room for 4 tokens is {2 * 2 * 4 * 8}", 0)


WRONG = [
    ("return self.keys[:, :, order], self.values[:, :, order]", "return self.keys, self.values", "filling", 0),
    ("        order = torch", "        self.seen -= 1\n        order = torch", "filling", 0),  # the newest is left out
    ("torch.arange(first, self.seen) % self.window", "torch.arange(self.seen - first)", "rolling", 1),
    ("place = self.seen % self.window", "place = min(self.seen, self.window - 1)", "rolling", 0),
    ("        self.keys[:, :, place], self.values[:, :, place] = k_BKd, v_BKd\n",
     "        self.keys[:, :, place], self.values[:, :, place] = v_BKd, k_BKd\n", "filling", 1),
    ("        self.seen += 1\n",
     "        self.seen += 1\n        self.keys = torch.cat([self.keys, k_BKd[:, :, None]], 2)\n",
     "memory", 0),  # keeps everything
    ("max(0, self.seen - self.window)", "0", "rolling", 0),
    ("head_dim, dtype=dtype)", "head_dim)", "filling", 1),
    ("self.window, self.seen = window, 0", "self.window, self.seen = window, 1", "filling", 0),
    ("self.keys[:, :, place], self.values[:, :, place] = k_BKd, v_BKd", "self.keys[:, :, place] = k_BKd", "filling", 1),
    ("self.values = torch.zeros_like(self.keys)", "self.values = self.keys", "filling", 1),
    ("torch.arange(first, self.seen) % self.window", "(torch.arange(first, self.seen) % self.window).flip(0)",
     "filling", 1),
]
