"""LLM.int8(): 8-bit weights and activations, with the few outlier columns kept apart (arXiv 2208.07339).

    y = (row-wise int8 of x) (row-wise int8 of W)^T, scaled back,  +  x[:, outliers] W[:, outliers]^T

A row's scale is its largest magnitude over 127. Trained models put values of size 6 and more into a few columns of x;
one such value would coarsen the whole row, so those columns are multiplied in the dtype of x instead.
"""

import math
from dataclasses import dataclass

import torch

from minillama import kernels
from minillama.quant.quantized_linear import QuantizedLinear

OUTLIER_THRESHOLD = 6.0  # arXiv 2208.07339, section 3.2


def quantize_rows(rows, threshold=math.inf):
    """int8 codes of each row, fp32 absmax of each row, and the columns left out: (N, K) -> (N, K), (N,), (any,).

    code = round(x * ((1 / absmax) * 127)), half to even, each step in fp32. A column with a magnitude >= threshold is
    an outlier: its codes are 0, and what is below the threshold in it still counts for its row's absmax, as in
    bitsandbytes. A row of zeros has codes 0. NaN makes its row's absmax NaN, so that it stays visible in the product.
    """
    outlier = rows.abs() >= threshold
    columns = outlier.any(0)
    inside = rows.float().masked_fill(outlier, 0)
    absmax = inside.abs().amax(1)
    codes = torch.round(inside * (127.0 * absmax.reciprocal())[:, None]).nan_to_num(0)  # 0 * infinity of a zero row
    codes = codes.masked_fill(columns, 0)
    return codes.to(torch.int8), absmax, columns.nonzero().flatten()


@dataclass(frozen=True)
class Int8Tensor:
    """A matrix (out, in) in row-wise int8: W = codes * absmax / 127."""

    codes: torch.Tensor  # int8 (out, in)
    absmax: torch.Tensor  # fp32 (out,)
    threshold: float = OUTLIER_THRESHOLD
    backend: str = "reference"  # whose code multiplies with it: this file's, or a kernel's (`int8_matmul`)

    def dequantize(self, dtype=torch.float32):
        return (self.codes.float() * (self.absmax / 127)[:, None]).to(dtype)

    def product(self, x):
        """x W^T for x (..., in), in the dtype of x: sums of codes exact, scaled in fp32, outlier columns added. The
        reference, not a fast path: codes are multiplied as float64, in which their sums are exact for any width."""
        if self.backend != "reference":
            return int8_matmul(x, self, self.backend)
        rows = x.reshape(-1, x.shape[-1])
        codes, absmax, columns = quantize_rows(rows, self.threshold)
        sums = codes.double() @ self.codes.double().T
        y = sums.float() * (absmax / 127)[:, None] * (self.absmax / 127)
        kept = Int8Tensor(self.codes[:, columns], self.absmax).dequantize(x.dtype)
        y = y + (rows[:, columns] @ kept.T).float()
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def product_backward(self, dy):
        """dy W with the dequantized W."""
        return dy @ self.dequantize(dy.dtype)


def int8_matmul(x, stored, backend="cpu"):
    """`Int8Tensor.product` by a compiled kernel: the same codes of x, the same sums of integers, scaled by the same two
    fp32 products. Columns of outliers are multiplied and added in fp32, whatever x's dtype. No gradient. RuntimeError
    if the backend is not built."""
    return kernels.operator_of("int8_matmul", backend, x)(x, stored.codes, stored.absmax, stored.threshold)


def quantize_int8(weight, threshold=OUTLIER_THRESHOLD):
    """Int8Tensor of a matrix (out, in) in fp32, bf16 or fp16. ValueError if it holds NaN or infinity.

    threshold: magnitude from which a column of x is an outlier; math.inf never splits.
    """
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"cannot quantize {weight.dtype}: convert the weight to float32, bfloat16 or float16")
    if weight.dim() != 2 or weight.numel() == 0 or not bool(torch.isfinite(weight).all()):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} cannot be quantized: it must be a matrix, not "
                         "empty, without NaN or infinity")
    if not threshold > 0:
        raise ValueError(f"threshold {threshold} is not allowed: use a positive size, such as 6.0, or math.inf")
    codes, absmax, _ = quantize_rows(weight.detach())
    return Int8Tensor(codes, absmax, float(threshold))


class Int8Linear(QuantizedLinear):
    """A linear layer whose frozen weight is kept in row-wise int8; see `QuantizedLinear`.

    The backward pass takes the rounding of x for the identity: dx = dy W with the dequantized W. `backends.use_kernels`
    sets `backend`.
    """

    backend, backends = "reference", kernels.KERNELS["int8_matmul"]

    def __init__(self, stored):
        out_features, in_features = stored.codes.shape
        super().__init__(out_features, in_features, [out_features, in_features])
        self.threshold = stored.threshold
        self.register_buffer("codes", stored.codes)
        self.register_buffer("absmax", stored.absmax)

    @classmethod
    def from_weight(cls, weight, threshold=OUTLIER_THRESHOLD):
        """Quantize a matrix (out, in)."""
        return cls(quantize_int8(weight, threshold))

    @classmethod
    def planned(cls, out_features, in_features, threshold=OUTLIER_THRESHOLD):
        """The layer without its numbers, on the meta device: which buffers it has, of which sizes."""
        with torch.device("meta"):
            return cls(Int8Tensor(torch.empty(out_features, in_features, dtype=torch.int8),
                                  torch.empty(out_features), threshold))

    def settings(self):
        return {"threshold": self.threshold}

    def packed_weight(self):
        return Int8Tensor(self.codes, self.absmax, self.threshold, self.backend)
