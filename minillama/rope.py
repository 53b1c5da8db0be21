"""RoPE, rotary position embedding: a token's position is an angle, and queries and keys are turned by it, pair by pair.

Pair i of a head turns by position * theta^(-2i/d): the first pair like a second hand, the last like an hour hand.
A query turned by m and a key turned by n meet at the angle m - n, so attention sees distances, not places.

Two layouts hold the same pairs. *Interleaved* (Meta) puts pair i in columns 2i and 2i+1; *half-split*
(Hugging Face, GPT-NeoX) in columns i and i + d/2. Weights of one are silent garbage under the other.
"""

import math
from typing import Any

import torch
from torch import Tensor


def rope_frequencies(head_dim: int, theta: float = 10000.0, scaling: Any = None) -> Tensor:
    """Radians per position of each pair: theta^(-2i/d), i < d/2 (arXiv 2104.09864, eq. 15), (d/2,) fp32 on the CPU."""
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd, and RoPE turns pairs: use an even width")
    exponents = torch.arange(0, head_dim, 2, device="cpu").float() / head_dim
    frequencies = 1.0 / (theta**exponents)
    return frequencies if scaling is None else scale_frequencies(frequencies, scaling)


def scale_frequencies(frequencies: Tensor, scaling: Any) -> Tensor:
    """Llama 3.1's stretch: slow pairs turn `factor` times slower, fast pairs stay, those between are blended.

    With wavelength w = 2 pi / f and old context L: f/factor where w > L / low; f where w < L / high; otherwise
    (1 - s) f / factor + s f, s = (L / w - low) / (high - low). Source: apply_scaling in meta-llama/llama-models.
    """
    wavelengths = 2 * math.pi / frequencies
    length, low, high = scaling.original_max_seq_len, scaling.low_freq_factor, scaling.high_freq_factor
    share = (length / wavelengths - low) / (high - low)
    blended = (1 - share) * frequencies / scaling.factor + share * frequencies
    scaled = torch.where(wavelengths > length / low, frequencies / scaling.factor, frequencies)
    between = (wavelengths <= length / low) & (wavelengths >= length / high)
    return torch.where(between, blended, scaled)


def rope_rotations(positions: Tensor, frequencies: Tensor) -> Tensor:
    """The unit complex numbers e^(i * position * frequency). positions (...,) -> (..., d/2) complex64.

    Angles are formed in fp32 whatever the model's dtype: bf16 cannot even hold the position 257.
    """
    angles = positions.float()[..., None] * frequencies.to(positions.device)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rope(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn the interleaved pairs of x: (x_2i + i x_2i+1) * rotation (arXiv 2104.09864, eq. 34).

    x: (..., T, H, d) any float dtype; rotations: (T, d/2) or (B, T, d/2) complex64. Computed in fp32 (float64 in
    float64), returned in x's dtype, rounded once. The length of every pair is kept.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    turned = pairs * rotations.unsqueeze(-2)  # one rotation for all heads of a token
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def apply_rope_half_split(x: Tensor, rotations: Tensor) -> Tensor:
    """The same turn for the half-split layout: columns i and i + d/2 are a pair. Shapes as in `apply_rope`."""
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    cos, sin = rotations.real.unsqueeze(-2), rotations.imag.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def apply_rope_qk(q_BTHd: Tensor, k_BTKd: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    """`apply_rope` of queries and of keys: what a layer asks for, and a compiled kernel does in one launch."""
    return apply_rope(q_BTHd, rotations), apply_rope(k_BTKd, rotations)


def half_split_order(head_dim: int) -> Tensor:
    """Columns of the interleaved layout in half-split order: x_half = x_interleaved[..., half_split_order(d)].

    >>> half_split_order(6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return torch.arange(head_dim).view(-1, 2).T.flatten()
