"""Attention: every token asks (q), every token answers to a name (k), and what is said (v) is mixed by the match."""

import math

import torch
from torch import nn

from minillama.rope import apply_rope_qk


def attention(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None):
    """softmax(q k^T / sqrt(d)) v (arXiv 1706.03762, eq. 1), with grouped heads (arXiv 2305.13245).

    Query head h reads key/value head h // (H / K). `causal` is aligned bottom-right: the last query sees every key,
    query i sees key j where j <= i + S - T, as decoding behind a cache needs. mask_BTS (bool) marks what may be
    seen besides. A query that may see nothing returns zeros. Softmax in fp32; output in q's dtype, (B, H, T, d).
    """
    B, H, T, d = q_BHTd.shape
    K, S = k_BKSd.shape[1:3]
    if H % K:
        raise ValueError(f"{H} query heads cannot share {K} key/value heads evenly")
    q_BKGTd = q_BHTd.reshape(B, K, H // K, T, d)  # G = H / K queries per key/value head: k and v are not repeated
    scores = q_BKGTd.flatten(2, 3) @ k_BKSd.transpose(-1, -2) / math.sqrt(d)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(B, K, H // K, T, S)
    visible = visible_keys(T, S, causal, mask_BTS, q_BHTd.device)
    if visible is None:
        weights = scores.softmax(-1)
    else:
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        if mask_BTS is not None or T > S:  # else every query sees at least one key
            weights = weights.masked_fill(~visible.any(-1, keepdim=True), 0.0)  # 0/0 of an empty row is 0, not NaN
    mixed = weights.to(v_BKSd.dtype).flatten(2, 3) @ v_BKSd
    return mixed.view(B, H, T, v_BKSd.shape[-1])


def visible_keys(T, S, causal, mask_BTS, device):
    """What each query may see, a bool tensor that broadcasts against (B, K, G, T, S); None where it is everything."""
    mask = None if mask_BTS is None else mask_BTS[:, None, None]
    if not causal or T == 1 <= S:
        return mask
    triangle = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    return triangle if mask is None else triangle & mask


def torch_attention(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None):
    """`attention` by PyTorch's fused scaled_dot_product_attention: the same meaning in less memory."""
    T, (K, S) = q_BHTd.shape[2], k_BKSd.shape[1:3]
    visible = visible_keys(T, S, causal, mask_BTS, q_BHTd.device)
    square = causal and mask_BTS is None and T == S  # only then does PyTorch's top-left is_causal mean ours
    visible = None if visible is None or square else visible.flatten(1, 2) if visible.dim() == 5 else visible
    out = nn.functional.scaled_dot_product_attention(
        q_BHTd, k_BKSd, v_BKSd, attn_mask=visible, is_causal=square and T > 1, enable_gqa=K != q_BHTd.shape[1])
    return out if visible is None else out.masked_fill(~visible.any(-1, keepdim=True), 0.0)


class Attention(nn.Module):
    """The layer: project to q, k, v, turn q and k by position, remember k and v, attend, project back. No biases."""

    def __init__(self, config, attend=attention):
        super().__init__()
        self.head_dim, self.attend, self.rotate = config.head_dim, attend, apply_rope_qk
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x_BTD, rotations, cache=None, layer=0, mask_BTS=None):
        q_BTHd, k_BTKd, v_BTKd = (w(x_BTD).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q_BTHd, k_BTKd = self.rotate(q_BTHd, k_BTKd, rotations)
        q_BHTd, k_BKTd, v_BKTd = (x.transpose(1, 2) for x in (q_BTHd, k_BTKd, v_BTKd))
        if cache is not None:
            k_BKTd, v_BKTd = cache.append(layer, k_BKTd, v_BKTd)
        mixed_BHTd = self.attend(q_BHTd, k_BKTd, v_BKTd, causal=True, mask_BTS=mask_BTS)
        return self.wo(mixed_BHTd.transpose(1, 2).flatten(-2))  # (B, T, H, d) -> (B, T, H d)
