"""Checks of exercise 08: the mask against its definition, attention against copied keys and values in float64."""

import torch

from minillama.attention import attention
from minillama.course.exercise import Wrong, close

HINTS = {
    "mask": (
        "At which place does query t stand? Only for T = S is it place t.",
        "Query t stands at place t + S - T, and it sees its own place too.",
        "Compare the place of each query, as a column, with the numbers of the keys, as a row.",
    ),
    "attention": (
        "Try it with one head first (H = K = 1): scores, scale, mask, softmax over the keys, values.",
        "Which key/value head does query head h read? With H = 4 and K = 2: heads 0, 0, 1, 1, not 0, 1, 0, 1.",
        "View the queries as (B, K, H/K, T, d), give keys and values an axis of size 1 in third place, "
        "and let it stretch.",
    ),
}


def check_mask(learner):
    for T, S in ((1, 1), (3, 3), (1, 5), (2, 5), (4, 7)):
        wanted = torch.tensor([[s <= t + S - T for s in range(S)] for t in range(T)])
        got = learner.causal_mask(T, S)
        if torch.is_tensor(got) and got.shape == wanted.shape:
            if not got[-1].all():
                raise Wrong(f"T = {T}, S = {S}: the last query must see all {S} keys, its own included",
                            0 if T < S else 1)
        close(f"mask for T = {T}, S = {S}", got, wanted, 0.0, hint=0 if T < S else 1)


def check_attention(learner):
    for B, H, K, T, S, d in ((1, 1, 1, 1, 1, 1), (1, 1, 1, 5, 5, 3), (2, 3, 3, 1, 4, 2), (2, 6, 2, 5, 5, 4),
                             (1, 6, 3, 2, 7, 8), (3, 4, 1, 3, 3, 5)):
        q = torch.randn(B, H, T, d, dtype=torch.float64)
        k, v = torch.randn(2, B, K, S, d, dtype=torch.float64)
        wanted = attention(q, k, v)
        got = learner.grouped_attention(q, k, v)
        wrong_heads = [h % K for h in range(H)]
        swapped = K < H and torch.is_tensor(got) and got.shape == wanted.shape and torch.allclose(
            got, attention(q, k[:, wrong_heads], v[:, wrong_heads]))
        if swapped and K > 1:
            raise Wrong(f"H = {H}, K = {K}: query head 1 reads key/value head 1; it should read head 0", 1)
        close(f"attention for B, H, K, T, S, d = {B, H, K, T, S, d}", got, wanted, 1e-9, hint=0 if H == K else 2)


WRONG = [
    ("[:, None] + S - T", "[:, None]", "mask", 0),  # aligned to the first token instead of the last
    ("<= places", "< places", "mask", 1),
    (" / math.sqrt(d)", "", "attention", 0),
    ("scores.masked_fill(~causal_mask(T, S), -math.inf)", "scores", "attention", 0),
    ("scores.softmax(-1)", "scores.softmax(-2)", "attention", 0),
    ("    K, S = k_BKSd.shape[1:3]\n", "    K, S = H, k_BKSd.shape[2]\n    k_BKSd, v_BKSd = "
     "(x.repeat(1, H // x.shape[1], 1, 1) for x in (k_BKSd, v_BKSd))\n", "attention", 1),  # heads 0, 1, 0, 1
    ("reshape(B, K, H // K, T, d)", "reshape(B, H // K, K, T, d).transpose(1, 2)", "attention", 2),
]
