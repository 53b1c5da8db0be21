"""Attention of a model by the CUDA kernels: whole texts, a few queries, and a token behind a KV cache in one launch.

    CudaAttention(backend)                                           called like `minillama.attention.attention`
    forward_by_kernels(layer, x, rotations, cache)                   a layer: `minillama.attention.Attention.forward`
    append_and_attend(q, k, v, keys, values, rotations, lengths)     RoPE, a cache's new rows and attention at once
"""

from typing import Any

import torch
from torch import Tensor

from minillama import kernels
from minillama.attention import Attention

DECODED = 8  # queries of a head, at most, that the kernel for decoding takes


def append_and_attend(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, keys_BKSd: Tensor, values_BKSd: Tensor,
                      rotations: Tensor, lengths_B: Tensor | int, begins_B: Tensor | None = None,
                      interleaved: bool = True, backend: str = "simt", arrivals: Tensor | None = None) -> Tensor:
    """Turn q and k, put k and v into row lengths[b] of the cache, attend over rows begins[b] to lengths[b]: one launch.

    q, k, v: fp32, bf16 or fp16 before RoPE, T = 1, without a gradient; keys and values: S rows of room. lengths_B:
    int64, tokens that each row of the batch holds, or one number for all; begins_B: how many of them are padding.
    rotations: complex64, a table (positions, r/2), of which row lengths[b] - begins[b] is taken, or the tokens' own,
    (1 or B, 1, r/2), r <= d. arrivals: int32, B H zeros, which stay so: counters of the blocks, of one CUDA stream at a
    time (None: new ones). Returns (B, 1, H, d).
    RuntimeError before it for a row without room, and for widths and strides off 16 bytes. Lengths that lie
    on a GPU are not looked at: there a row without room becomes NaN, and nothing is written.
    """
    operator = kernels.operator_of("flash_attention", backend, q_BTHd, "flash_decoding_append")
    if rotations.dtype != torch.complex64:
        raise ValueError(f"rotations are {rotations.dtype}, wanted torch.complex64, as rope_rotations makes them")
    if arrivals is None:
        arrivals = torch.zeros(len(q_BTHd) * q_BTHd.shape[2], dtype=torch.int32, device=q_BTHd.device)
    lengths, length = (None, lengths_B) if isinstance(lengths_B, int) else (lengths_B, 0)
    return operator(q_BTHd, k_BTKd, v_BTKd, keys_BKSd, values_BKSd, arrivals,
                    torch.view_as_real(rotations.resolve_conj()), lengths, length, begins_B, interleaved)


class CudaAttention:
    """`attention` by the CUDA kernels of a backend, "simt" or "cuda": for up to 8 queries that need no gradient, as in
    decoding, by one that splits the keys over blocks (csrc/cuda/flash_decoding.cuh)."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __call__(self, q_BHTd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, causal: bool = True,
                 mask_BTS: Tensor | None = None) -> Tensor:
        if _learns(q_BHTd, k_BKSd, v_BKSd) or q_BHTd.shape[2] > DECODED:
            return kernels.flash_attention(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS, self.backend)
        operator = kernels.operator_of("flash_attention", self.backend, q_BHTd, "flash_decoding")
        return operator(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS)


def forward_by_kernels(layer: Attention, x_BTD: Tensor, rotations: Tensor, cache: Any = None, number: int = 0,
                       mask_BTS: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None,
                       causal: bool = True) -> Tensor:
    """`Attention.forward` of layer `number`, a token behind a cache in one launch between its projections.

    One of several launches takes all else: more tokens than one, a wanted gradient, a prefix, a cache of another dtype,
    and heads that are no multiple of 16 bytes. So does a full cache, which says so.
    """
    attend: Any = layer.attend  # a `CudaAttention` in all that goes on below
    whole = layer.head_dim * x_BTD.element_size() % 16 == 0 and isinstance(attend, CudaAttention)
    alone = x_BTD.shape[1] == 1 and causal and prefix is None and not _learns(x_BTD, *layer.parameters())
    if cache is None or not whole or not alone or cache.keys.dtype != x_BTD.dtype or cache.length == cache.max_len:
        return type(layer).forward(layer, x_BTD, rotations, cache, number, mask_BTS, prefix, causal)
    q, k, v = (project(x_BTD).unflatten(-1, (-1, layer.head_dim)) for project in (layer.wq, layer.wk, layer.wv))
    if not hasattr(cache, "arrivals"):  # as long as the cache lives, of whose calls each waits for the last
        cache.arrivals = torch.zeros(len(q) * q.shape[2], dtype=torch.int32, device=q.device)
    keys_BKSd, values_BKSd = (part[number, :, :, :cache.length + 1] for part in (cache.keys, cache.values))
    own = rotations[None] if rotations.dim() == 2 else rotations  # (1, r/2) for all rows, or (B, 1, r/2)
    mixed_BTHd = append_and_attend(q, k, v, keys_BKSd, values_BKSd, own, cache.length, cache.left_pad_B,
                                   backend=attend.backend, arrivals=cache.arrivals)
    return layer.wo(mixed_BTHd.flatten(-2))


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
