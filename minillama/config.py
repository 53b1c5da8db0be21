"""The shape of a LLaMA: every number that the forward pass needs, checked once, and the published sizes.

Letters used throughout: B batch, T time (S for keys), D model width, H heads, K key/value heads, d head width,
F feed-forward width, V vocabulary.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from minillama.config_checks import check_config, choice, number

size = partial(number, least=1, most=2**31)  # no published one comes near
real = partial(number, least=1e-30, most=2**53)


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the RoPE wavelengths to a longer context (see `rope.scale_frequencies`)."""

    factor: float = real(8.0)  # how many times the slow rotations are slowed down further
    low_freq_factor: float = real(1.0)  # wavelengths above original_max_seq_len / this are stretched in full
    high_freq_factor: float = real(4.0)  # wavelengths below original_max_seq_len / this are left alone
    original_max_seq_len: int = size(8192)  # tokens the model was pretrained on before stretching

    def __post_init__(self) -> None:
        check_config(self)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor {self.high_freq_factor} must be above "
                             f"low_freq_factor {self.low_freq_factor}")


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA's shape. None stands for the usual choice and is filled in: K = H, d = D / H, F by `hidden_dim_rule`."""

    dim: int = size()  # D
    n_layers: int = size()
    n_heads: int = size(most=2**16)  # H
    vocab_size: int = size()  # V
    n_kv_heads: int = size(None)  # K: each key/value head serves H / K query heads (grouped-query attention)
    head_dim: int = size(None)  # d, even: RoPE turns pairs
    hidden_dim: int = size(None)  # F
    max_seq_len: int = size(2048)  # tokens the model was trained to attend over
    norm_eps: float = real(1e-5)
    rope_theta: float = real(10000.0)
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False  # the output head is the embedding table itself
    objective: str = choice("causal", "causal", "blank")  # how it was pretrained: blank: see `train.blank_infilling`

    def __post_init__(self) -> None:
        check_config(self)
        _fill(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is no multiple of n_heads {self.n_heads}: change one, or give head_dim")
        _fill(self, "head_dim", self.dim // self.n_heads)
        _fill(self, "hidden_dim", hidden_dim_rule(self.dim))
        if self.n_heads % self.n_kv_heads:
            divisors = [k for k in range(1, self.n_heads + 1) if self.n_heads % k == 0]
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}: use one of "
                             f"{divisors}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and RoPE turns pairs: use {self.head_dim + 1}")

    def n_parameters(self) -> int:
        """Stored numbers, counted by formula; a tied output head counts once."""
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        block = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        tables = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return tables + self.n_layers * block + self.dim


def hidden_dim_rule(dim: int, multiple_of: int = 256, ffn_dim_multiplier: float | None = None) -> int:
    """F as Meta's code computes it: two thirds of 4D (SwiGLU has three matrices where a plain layer has two),
    times an optional multiplier, rounded up to a multiple (meta-llama/llama, llama/model.py, FeedForward).

    >>> hidden_dim_rule(4096), hidden_dim_rule(8192, 4096, 1.3)
    (11008, 28672)
    """
    hidden = int((1.0 if ffn_dim_multiplier is None else ffn_dim_multiplier) * int(2 * (4 * dim) / 3))
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def _fill(config: "ModelConfig", name: str, value: int) -> None:
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)  # the one moment a frozen config is written


def _config_of(row: dict) -> ModelConfig:
    scaling = RopeScaling(**row.pop("rope_scaling")) if "rope_scaling" in row else None
    return ModelConfig(**row, rope_scaling=scaling)


# {name: the shape}. presets.json says where the numbers were published; what it leaves out is the usual choice.
_FAMILIES = json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))
PRESETS = {name: _config_of(row) for rows in _FAMILIES.values() for name, row in rows.items()}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The published shape called `name`, with any field changed: `preset("tiny", vocab_size=1024)`.

    Fields not named keep their numbers; None refits one: `preset("tiny", dim=192, head_dim=None, hidden_dim=None)`.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
