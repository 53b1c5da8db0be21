"""Attention: a token's query is compared with every key; the better the match, the more of that value it gets.

Grouped-query attention (GQA): several query heads share a head of keys and values; with one each it is multi-head.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minillama.rope import apply_rope_qk


def attention(q_BHTd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, causal: bool = True,
              mask_BTS: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (arXiv 1706.03762, eq. 1), with grouped heads (arXiv 2305.13245).

    Query head h reads key/value head h // (H / K). `causal` is aligned bottom-right: the last query sees every key,
    query i sees key j where j <= i + S - T, as decoding behind a cache needs. mask_BTS (bool) marks what may be
    seen besides. A query that may see nothing returns zeros. Softmax in fp32; output in q's dtype, (B, H, T, d).
    """
    weights_BHTS = attention_weights(q_BHTd, k_BKSd, causal, mask_BTS).to(v_BKSd.dtype)
    B, H, T, S = weights_BHTS.shape
    K = v_BKSd.shape[1]
    weights_BKGS = weights_BHTS.view(B, K, H // K * T, S)  # G queries share k and v: T of each of H / K heads
    mixed_BKGd = weights_BKGS @ v_BKSd
    return mixed_BKGd.view(B, H, T, v_BKSd.shape[-1])


def attention_weights(q_BHTd: Tensor, k_BKSd: Tensor, causal: bool = True, mask_BTS: Tensor | None = None) -> Tensor:
    """How much of each key's value a query takes: softmax(q k^T / sqrt(d)), (B, H, T, S) in fp32, each row's sum 1.

    The arguments are those of `attention`; a query that may see nothing has a row of zeros.
    """
    B, H, T, d = q_BHTd.shape
    K, S = k_BKSd.shape[1:3]
    if H % K:
        raise ValueError(f"{H} query heads cannot share {K} key/value heads evenly")
    q_BKGd = q_BHTd.reshape(B, K, H // K * T, d)  # neighbouring heads share k, which is not copied for each
    scores_BKGS = q_BKGd @ k_BKSd.transpose(-1, -2) / math.sqrt(d)
    scores_BHTS = scores_BKGS.view(B, H, T, S).to(torch.promote_types(q_BHTd.dtype, torch.float32))
    visible = visible_keys(T, S, causal, mask_BTS, q_BHTd.device)
    if visible is None:
        return scores_BHTS.softmax(-1)
    weights_BHTS = scores_BHTS.masked_fill(~visible, -math.inf).softmax(-1)
    if mask_BTS is None and T <= S:  # every query sees at least one key
        return weights_BHTS
    return weights_BHTS.masked_fill(~visible.any(-1, keepdim=True), 0.0)  # 0/0 of an empty row is 0, not NaN


def visible_keys(T: int, S: int, causal: bool, mask_BTS: Tensor | None, device: torch.device) -> Tensor | None:
    """What each query may see, a bool tensor that broadcasts against (B, H, T, S); None where it is everything."""
    mask = None if mask_BTS is None else mask_BTS[:, None]  # (B, 1, T, S): the same for every head
    if not causal or T == 1 <= S:
        return mask
    triangle = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    return triangle if mask is None else triangle & mask


def torch_attention(q_BHTd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, causal: bool = True,
                    mask_BTS: Tensor | None = None) -> Tensor:
    """`attention` by PyTorch's fused scaled_dot_product_attention: the same meaning in less memory."""
    H, T = q_BHTd.shape[1:3]
    K, S = k_BKSd.shape[1:3]
    attend = functools.partial(nn.functional.scaled_dot_product_attention, q_BHTd, k_BKSd, v_BKSd, enable_gqa=K != H)
    if causal and mask_BTS is None and T == S:  # only then does PyTorch's top-left is_causal mean ours
        return attend(is_causal=T > 1)
    visible = visible_keys(T, S, causal, mask_BTS, q_BHTd.device)
    if visible is None:
        return attend()
    return attend(attn_mask=visible).masked_fill(~visible.any(-1, keepdim=True), 0.0)


def with_prefix_in_front(prefix: tuple[Tensor, Tensor], k_BKSd: Tensor, v_BKSd: Tensor,
                  mask_BTS: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask with n virtual tokens in front, which every query sees: S becomes n + S.

    prefix: their (k, v), (1, K, n, d) each, of any float dtype and the same for every row of the batch.
    """
    k_BKnd, v_BKnd = (part.to(k_BKSd.dtype).expand(len(k_BKSd), -1, -1, -1) for part in prefix)
    if mask_BTS is not None:
        mask_BTS = nn.functional.pad(mask_BTS, (k_BKnd.shape[2], 0), value=True)
    return torch.cat([k_BKnd, k_BKSd], 2), torch.cat([v_BKnd, v_BKSd], 2), mask_BTS


class Attention(nn.Module):
    """The layer: project to q, k, v, turn q and k by position, remember k and v, attend, project back. No biases."""

    def __init__(self, config: Any, attend: Callable[..., Tensor] = attention) -> None:
        super().__init__()
        self.head_dim, self.attend, self.rotate = config.head_dim, attend, apply_rope_qk
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, rotations: Tensor, cache: Any = None, layer: int = 0,
                mask_BTS: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None,
                causal: bool = True) -> Tensor:
        q_BTHd = self.wq(x_BTD).unflatten(-1, (-1, self.head_dim))  # (B, T, H d) -> (B, T, H, d)
        k_BTKd = self.wk(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTKd = self.wv(x_BTD).unflatten(-1, (-1, self.head_dim))
        q_BTHd, k_BTKd = self.rotate(q_BTHd, k_BTKd, rotations)
        q_BHTd, k_BKTd, v_BKTd = q_BTHd.transpose(1, 2), k_BTKd.transpose(1, 2), v_BTKd.transpose(1, 2)
        if cache is not None:
            k_BKTd, v_BKTd = cache.append(layer, k_BKTd, v_BKTd)  # T becomes S: all that was read before, and this
        if prefix is not None:
            k_BKTd, v_BKTd, mask_BTS = with_prefix_in_front(prefix, k_BKTd, v_BKTd, mask_BTS)
        mixed_BHTd = self.attend(q_BHTd, k_BKTd, v_BKTd, causal=causal, mask_BTS=mask_BTS)
        return self.wo(mixed_BHTd.transpose(1, 2).flatten(-2))  # (B, T, H, d) -> (B, T, H d)
