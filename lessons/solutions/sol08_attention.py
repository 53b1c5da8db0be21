"""Solution of exercise 08: the causal mask behind a cache, grouped-query attention, and a whole layer."""

import math

import torch


def causal_mask(T, S):
    """Key s is visible to query t, which stands at place t + S - T, where s <= t + S - T. (T, S) bool."""
    places = torch.arange(T)[:, None] + S - T
    return torch.arange(S)[None, :] <= places


def grouped_attention(q_BHTd, k_BKSd, v_BKSd):
    """`expand` gives each key/value head H / K readers without copying it. Returns (B, H, T, d)."""
    B, H, T, d = q_BHTd.shape
    K, S = k_BKSd.shape[1:3]
    q_BKGTd = q_BHTd.reshape(B, K, H // K, T, d)
    k_BKGSd = k_BKSd[:, :, None].expand(B, K, H // K, S, d)
    v_BKGSd = v_BKSd[:, :, None].expand(B, K, H // K, S, d)
    scores = q_BKGTd @ k_BKGSd.transpose(-1, -2) / math.sqrt(d)
    scores = scores.masked_fill(~causal_mask(T, S), -math.inf)
    weights = scores.softmax(-1)
    return (weights @ v_BKGSd).reshape(B, H, T, d)


def attention_layer(x_BTD, wq, wk, wv, wo, H, K):
    """Projections, heads, output matrix. Returns (B, T, D)."""
    B, T, D = x_BTD.shape
    q_BHTd = (x_BTD @ wq.T).view(B, T, H, -1).transpose(1, 2)
    k_BKTd = (x_BTD @ wk.T).view(B, T, K, -1).transpose(1, 2)
    v_BKTd = (x_BTD @ wv.T).view(B, T, K, -1).transpose(1, 2)
    heads_BHTd = grouped_attention(q_BHTd, k_BKTd, v_BKTd)
    joined = heads_BHTd.transpose(1, 2).reshape(B, T, -1)
    return joined @ wo.T
