"""The KV cache: keys and values of the tokens already read, so that each new token costs one row, not the square."""

from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Room for `max_len` tokens of every layer; keys are stored after RoPE, at their absolute position.

    left_pad_B: how many places at the start of each row are padding, for prompts of unequal length; they are
    never attended to, and positions count from the first real token: padding takes room here, and none of the model's
    context. Memory: 2 L B K d max_len numbers.
    """

    def __init__(self, config: Any, batch: int, max_len: int, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", left_pad_B: Tensor | None = None) -> None:
        if batch < 1 or max_len < 1:
            raise ValueError(f"a cache of batch {batch} and max_len {max_len} holds nothing: both must be at least 1")
        shape = (config.n_layers, batch, config.n_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_len = max_len
        self.length = 0  # tokens held so far, padding included
        self.left_pad_B = left_pad_B

    def append(self, layer: int, k_BKTd: Tensor, v_BKTd: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new tokens of one layer behind the `length` held; return that layer's keys and values up to now.

        `length` itself moves once per forward pass (`advance`), when all layers have stored their part.
        """
        end = self.length + k_BKTd.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens and {end} are wanted: give a larger max_len")
        self.keys[layer, :, :, self.length:end] = k_BKTd
        self.values[layer, :, :, self.length:end] = v_BKTd
        return self.keys[layer, :, :, :end].to(k_BKTd.dtype), self.values[layer, :, :, :end].to(v_BKTd.dtype)

    def advance(self, n_tokens: int) -> None:
        self.length += n_tokens

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these rows alone, a list of ascending numbers. They move within the memory that is held."""
        kept = torch.tensor(rows, device=self.keys.device)
        for held in (*self.keys, *self.values):  # one layer at a time: index_select makes a copy
            held[:len(rows), :, :self.length] = held[:, :, :self.length].index_select(0, kept)
        self.keys, self.values = self.keys[:, :len(rows)], self.values[:, :len(rows)]
        if self.left_pad_B is not None:
            self.left_pad_B = self.left_pad_B[kept] if self.left_pad_B[kept].any() else None
