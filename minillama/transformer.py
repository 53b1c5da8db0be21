"""The whole LLaMA: embed, then blocks of attention and feed-forward around a residual stream, then read out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillama.attention import Attention, attention
from minillama.config import ModelConfig
from minillama.kv_cache import KVCache
from minillama.rms_norm import RMSNorm
from minillama.rope import rope_frequencies, rope_rotations
from minillama.swiglu import SwiGLU


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-normalised residual layers (arXiv 2002.04745)."""

    def __init__(self, config: ModelConfig, attend: Callable[..., Tensor] = attention) -> None:
        super().__init__()
        self.attention = Attention(config, attend)
        self.feed_forward = SwiGLU(config.dim, config.hidden_dim)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x_BTD: Tensor, rotations: Tensor, cache: KVCache | None = None, layer: int = 0,
                mask_BTS: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None,
                causal: bool = True) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotations, cache, layer, mask_BTS, prefix, causal)
        return x_BTD + self.feed_forward(self.ffn_norm(x_BTD))


class Transformer(nn.Module):
    """LLaMA (arXiv 2302.13971, section 2.2), with Meta's parameter names.

    `attend`: each layer's attention. `gradient_checkpointing = True` forgets activations inside blocks and computes
    them again in the backward pass (arXiv 1604.06174). `virtual_tokens`, called with the model, gives keys and values
    that every query of a layer sees (`peft.prefix_tuning`). `cache_dtype`: of the KV cache in `generate`, if set.
    """

    def __init__(self, config: ModelConfig, attend: Callable[..., Tensor] = attention) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing, self.virtual_tokens, self.cache_dtype = False, None, None
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, attend) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        # Not a buffer: `.to(bfloat16)` must never round the angles.
        self.frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.init_weights()
        self.tie_weights()

    def init_weights(self) -> None:
        """N(0, 1 / fan-in) for every matrix, so that a layer neither grows nor shrinks what it reads; the two that
        write into the residual stream are divided by sqrt(2 L) besides, so that it does not grow with depth (GPT-2's
        scheme). At D = 4096 this is the usual 0.016; a fixed 0.02 would make a narrow model slow to look back."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                writes_to_stream = name.endswith(("wo.weight", "w2.weight"))
                depth = math.sqrt(2 * self.config.n_layers) if writes_to_stream else 1.0
                nn.init.normal_(weight, std=1 / (math.sqrt(weight.shape[1]) * depth))

    def tie_weights(self) -> None:
        """Weight tying: one table for both ends where the config says so; call it again after weights were replaced."""
        if self.config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None, left_pad_B: Tensor | None = None,
                document_ids_BT: Tensor | None = None, logits_at_BT: Tensor | None = None,
                layout: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Logits of the next token at every place, (B, T, V) fp32; or, (N, V), at the N places that logits_at_BT (bool)
        marks, row after row: the head is spared the others. The other arguments are those of `hidden_states`."""
        hidden_BTD = self.hidden_states(tokens_BT, cache, left_pad_B, document_ids_BT, layout)
        return self.logits(hidden_BTD if logits_at_BT is None else hidden_BTD[logits_at_BT])

    def hidden_states(self, tokens_BT: Tensor, cache: KVCache | None = None, left_pad_B: Tensor | None = None,
                      document_ids_BT: Tensor | None = None, layout: tuple | None = None) -> Tensor:
        """The residual stream after the final norm, (B, T, D).

        tokens_BT: int64. cache: the tokens follow those it holds, and are added to it. left_pad_B: padding at the
        start of each row (a cache brings its own). document_ids_BT: for packed rows, tokens see their own document.
        layout: the rotations and all that each token may see, of rows that are not read from left to right.
        """
        self._check(tokens_BT, cache, left_pad_B, layout)
        start, left_pad_B = (0, left_pad_B) if cache is None else (cache.length, cache.left_pad_B)
        positions, mask_BTS = positions_and_mask(tokens_BT, start, left_pad_B, document_ids_BT)
        self.frequencies = self.frequencies.to(tokens_BT.device)  # no copy where they are there
        rotations, mask_BTS = layout or (rope_rotations(positions, self.frequencies), mask_BTS)
        x_BTD = self.tok_embeddings(tokens_BT)
        prefixes = self.virtual_tokens(self) if self.virtual_tokens is not None else [None] * len(self.layers)
        for layer, (block, prefix) in enumerate(zip(self.layers, prefixes, strict=True)):
            read = x_BTD, rotations, cache, layer, mask_BTS, prefix, layout is None
            again = self.gradient_checkpointing and self.training and torch.is_grad_enabled() and cache is None
            x_BTD = checkpoint(block, *read, use_reentrant=False) if again else block(*read)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.norm(x_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of every piece of the vocabulary, fp32 (float64 in float64): softmax and losses start from here."""
        scores_BTV = self.output(hidden_BTD)
        return scores_BTV.to(torch.promote_types(scores_BTV.dtype, torch.float32))

    def _check(self, tokens_BT: Tensor, cache: KVCache | None, left_pad_B: Tensor | None, layout: object) -> None:
        if layout is None and self.config.objective != "causal":
            raise ValueError("objective 'blank' is not read from left to right: see train.blank_infilling.fill_text")
        if tokens_BT.dim() != 2:
            raise ValueError(f"tokens have shape {tuple(tokens_BT.shape)}: expected (batch, time)")
        if cache is not None and left_pad_B is not None:
            raise ValueError("left_pad_B was given beside a cache, which brings its own: KVCache(..., left_pad_B=...)")
        length = tokens_BT.shape[1] + (cache.length if cache is not None else 0)
        pad_B = left_pad_B if cache is None else cache.left_pad_B
        if length > self.config.max_seq_len and pad_B is not None:
            length -= int(pad_B.min())  # padding has no position
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens are more than the {self.config.max_seq_len} this model attends over "
                             "(max_seq_len): shorten the text")


def positions_and_mask(tokens_BT: Tensor, start: int = 0, left_pad_B: Tensor | None = None,
                       document_ids_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Position of each token, (T,) or (B, T), and what it may see besides causality, (B, T, S) bool or None.

    Padding and documents both restart the count: position 0 is the first real token of a row or of a document.
    """
    T = tokens_BT.shape[1]
    places = torch.arange(start + T, device=tokens_BT.device)
    if document_ids_BT is not None:
        if start or left_pad_B is not None:
            raise ValueError("document_ids_BT is for packed training rows: it takes neither a filled cache nor padding")
        same_BTS = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
        new_BT = nn.functional.pad(document_ids_BT[:, 1:] != document_ids_BT[:, :-1], (1, 0), value=True)
        return places - (new_BT * places).cummax(-1).values, same_BTS
    if left_pad_B is None:
        return places[start:], None
    positions_BT = (places[start:] - left_pad_B[:, None]).clamp(min=0)  # a pad's own position never matters
    return positions_BT, (places >= left_pad_B[:, None])[:, None, :].expand(-1, T, -1)
