"""Checks of exercise 08: the mask against its definition, attention against copied keys and values in float64, a layer
head by head."""

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
    "layer": (
        "Each matrix is (out, in): the projection of x is x times the transposed matrix.",
        "(B, T, H d) is cut into (B, T, H, d) first, and only then reordered to (B, H, T, d).",
        "The way back is the same in reverse: (B, H, T, d) to (B, T, H, d), then joined to (B, T, H d).",
        "The output matrix comes last: it mixes the joined heads into (B, T, D).",
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


def check_layer(learner):
    for B, T, D, H, K, d in ((1, 1, 3, 1, 1, 3), (1, 4, 6, 1, 1, 4), (2, 5, 12, 3, 3, 4), (2, 4, 10, 6, 2, 5)):
        generator = torch.Generator().manual_seed(D)
        x, wq, wk, wv, wo = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in
                             ((B, T, D), (H * d, D), (K * d, D), (K * d, D), (D, H * d)))
        heads = []
        for h in range(H):
            q, k, v = ((x @ w[n * d:(n + 1) * d].T)[:, None] for w, n in ((wq, h), (wk, h * K // H), (wv, h * K // H)))
            heads.append(attention(q, k, v)[:, 0])
        joined, mixed = torch.cat(heads, -1), torch.stack(heads, 1).reshape(B, T, -1)  # mixed: not reordered first
        got = learner.attention_layer(x, wq, wk, wv, wo, H, K)
        hint = 0 if H == 1 else 1
        for hinted, other in ((2, mixed @ wo.T), (3, joined)):
            if torch.is_tensor(got) and got.shape == other.shape and torch.allclose(got, other):
                hint = hinted
        close(f"layer for B, T, D, H, K, d = {B, T, D, H, K, d}", got, joined @ wo.T, 1e-9, hint=hint)


WRONG = [
    ("[:, None] + S - T", "[:, None]", "mask", 0),  # aligned to the first token instead of the last
    ("<= places", "< places", "mask", 1),
    (" / math.sqrt(d)", "", "attention", 0),
    ("scores.masked_fill(~causal_mask(T, S), -math.inf)", "scores", "attention", 0),
    ("scores.softmax(-1)", "scores.softmax(-2)", "attention", 0),
    ("    K, S = k_BKSd.shape[1:3]\n", "    K, S = H, k_BKSd.shape[2]\n    k_BKSd, v_BKSd = "
     "(x.repeat(1, H // x.shape[1], 1, 1) for x in (k_BKSd, v_BKSd))\n", "attention", 1),  # heads 0, 1, 0, 1
    ("reshape(B, K, H // K, T, d)", "reshape(B, H // K, K, T, d).transpose(1, 2)", "attention", 2),
    ("q_BHTd = (x_BTD @ wq.T).view(B, T, H, -1).transpose(1, 2)", "q_BHTd = (x_BTD @ wq.T).view(B, H, T, -1)",
     "layer", 1),
    ("q_BHTd = (x_BTD @ wq.T)", "q_BHTd = (x_BTD @ wq)", "layer", 0),
    ("k_BKTd = (x_BTD @ wk.T)", "k_BKTd = (x_BTD @ wv.T)", "layer", 0),
    ("heads_BHTd.transpose(1, 2).reshape(B, T, -1)", "heads_BHTd.reshape(B, T, -1)", "layer", 2),
    ("return joined @ wo.T", "return joined", "layer", 3),
    ("return joined @ wo.T", "return joined @ wo", "layer", 0),
]
