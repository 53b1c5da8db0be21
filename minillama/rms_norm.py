"""RMSNorm: every token's vector is brought to length sqrt(D), then each of its numbers gets a learned gain."""

import torch
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (arXiv 1910.07467, eq. 4; eps from Meta's code).

    The mean is taken in fp32, where squares of half-precision numbers cannot overflow. The result is rounded to
    x's dtype *before* the gain, as Meta's and Hugging Face's code do: the other order gives other bits.

    x: (..., D) float, weight: (D,). Returns (..., D) in the promoted dtype of x and weight.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # float64 stays float64
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


class RMSNorm(nn.Module):
    """`rms_norm` with its gain, which starts at one."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.normalize = eps, rms_norm
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight, self.eps)
