"""NF4: weights as levels of a normal distribution, scaled block by block (QLoRA, arXiv 2305.14314).

A block of 64 weights is stored as its largest magnitude (absmax, fp32) and, for each weight, the number of the level
nearest to w / absmax: 4 + 32/64 = 4.5 bits a weight. Double quantization stores the absmax values themselves in 8 bits,
in groups of 256 with one fp32 scale each: 4 + 8/64 + 32/(64 * 256) = 4.127 bits.
"""

import math
import struct
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import nn

from minillama import kernels
from minillama.quant.nearest import SMALLEST_SCALE, best_scales, nearest
from minillama.quant.quantized_linear import QuantizedLinear

BLOCK = 64  # weights that share an absmax
GROUP = 256  # absmax values that share a scale in double quantization
DECODE_CHUNK = 2**17  # weights that a CPU works on at once: half a megabyte of fp32 stays in its cache
CHUNKS_PER_MATMUL = 8  # chunks that a matrix product takes at once: it is slow on a few rows
SCALE_FACTORS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3)  # times absmax, tried by fit_scales


def fp32(x):
    """The fp32 number nearest to a Python number."""
    return struct.unpack("f", struct.pack("f", x))[0]


def evenly_spaced(first, last, count):
    """torch.linspace in fp32, from either end to the middle, as it is where products are fused: each number is rounded
    once. Elsewhere PyTorch rounds twice, and the tables of a file must not depend on that."""
    first, last = fp32(first), fp32(last)
    step = fp32(fp32(last - first) / (count - 1))
    return [fp32(first + i * step if i < count // 2 else last - (count - 1 - i) * step) for i in range(count)]


def normal_float_levels():
    """The 16 levels of NF4, ascending, -1 ... 1 with an exact 0 at index 7 (arXiv 2305.14314, appendix E).

    Quantiles of N(0, 1) at evenly spaced probabilities, 8 positive and 7 negative, divided by the
    largest. The outermost probability 0.9677083 = 1 - (1/32 + 1/30)/2: half a step in from 1, averaged
    over the two halves. This is the authors' code, which made the published table; the paper's eq. 4
    describes another mean. Probabilities and result are rounded to fp32, as there.
    """
    def quantiles(count):
        return [NormalDist().inv_cdf(p) for p in evenly_spaced(0.9677083, 0.5, count + 1)[:-1]]

    levels = [fp32(level) for level in sorted([*quantiles(8), 0.0, *(-q for q in quantiles(7))])]
    return tuple(fp32(level / levels[-1]) for level in levels)


def dynamic_map():
    """The 256 values of the signed 8-bit dynamic data type, ascending (arXiv 1511.04561).

    Each of 7 decades, 10^(e-7) to 10^(e-6), is cut into 2^e equal parts whose middles are the values, with
    both signs: small numbers keep their magnitude, large ones their digits. 0 and 1 are added, -1 is not.
    """
    values = [0.0, 1.0]
    for e in range(7):
        edges, scale = evenly_spaced(0.1, 1, 2**e + 1), fp32(10.0 ** (e - 6))
        middles = [fp32(scale * (fp32(low + high) / 2)) for low, high in zip(edges, edges[1:], strict=False)]
        values += middles + [-middle for middle in middles]
    return tuple(sorted(values))


NF4_LEVELS = normal_float_levels()
DYNAMIC_MAP = dynamic_map()


@dataclass(frozen=True)
class NF4Tensor:
    """A tensor in NF4. `absmax` holds fp32 values, or with double quantization the uint8 codes of them."""

    codes: torch.Tensor  # uint8, ceil(n / 2): element 2j in the high nibble, 2j + 1 in the low
    absmax: torch.Tensor  # ceil(n / block_size)
    absmax_scale: torch.Tensor | None  # fp32, one for each 256 absmax codes
    absmax_offset: torch.Tensor | None  # fp32 scalar, the mean absmax
    shape: tuple
    block_size: int = BLOCK
    backend: str = "reference"  # whose code multiplies with it: this file's, or a kernel's (`kernels.nf4_matmul`)
    activations: str = "fp32"  # or "int8": what a kernel rounds x to before it multiplies, 64 columns at a time

    def parts(self):
        """All that dequantizing needs; the last two are None without double quantization."""
        return self.codes, self.absmax, self.absmax_scale, self.absmax_offset

    def stored_bytes(self):
        """Bytes of all that dequantizing needs, counted from the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parts() if tensor is not None)

    def bits_per_weight(self):
        return 8 * self.stored_bytes() / math.prod(self.shape)

    def dequantize(self, dtype=torch.float32):
        """The tensor that it stands for: fp32 products, rounded once to `dtype`."""
        if self.backend == "cpu":
            dequantize = kernels.operator_of("nf4_quantize", "cpu", self.codes, "nf4_dequantize")
            return dequantize(*self.parts(), self.shape, self.block_size, dtype)
        n, block = math.prod(self.shape), self.block_size
        values = torch.empty(n, dtype=dtype, device=self.codes.device)
        for begin, part in dequantize_in_parts(self, block * max(1, DECODE_CHUNK // block)):
            values[begin:begin + len(part)] = part
        return values.view(self.shape)

    def product(self, x):
        """x W^T: W rounded once to the dtype of x, some rows at a time, then ordinary matrix products."""
        if self.backend != "reference":
            return kernels.nf4_matmul(x, self, self.backend)
        flat = x.reshape(-1, self.shape[1])
        y = flat.new_empty(len(flat), self.shape[0])
        for first, rows in dequantize_in_rows(self, x.dtype):
            torch.mm(flat, rows.T, out=y[:, first:first + len(rows)])
        return y.view(*x.shape[:-1], self.shape[0])

    def product_backward(self, dy):
        """dy W, the gradient of x, in the same pieces, summed in fp32: W never is in memory as a whole."""
        if self.backend != "reference":
            return kernels.nf4_matmul_backward(dy, self, self.backend)
        wide = torch.promote_types(dy.dtype, torch.float32)
        flat = dy.reshape(-1, self.shape[0]).to(wide)
        dx = flat.new_zeros(len(flat), self.shape[1])
        for first, rows in dequantize_in_rows(self, dy.dtype):
            dx.addmm_(flat[:, first:first + len(rows)], rows.to(wide))
        return dx.to(dy.dtype).view(*dy.shape[:-1], self.shape[1])


def quantize_nf4(weight, block_size=BLOCK, double_quantization=True, fit_scales=False, backend="reference"):
    """NF4Tensor of `weight` (fp32, bf16 or fp16, any shape, read in row-major order), computed in fp32.

    fit_scales: store for each block the scale from its absmax on that leaves the least squared error
    (`fit_block_scales`); without it the bytes are bitsandbytes', but for the mean absmax: theirs is off by the rounding
    of its sum. No byte depends on the CPU or on threads: sums are exact or in a fixed order, all else is number by
    number. backend "cpu" finds the same bytes by a kernel.

    Blocks run over the flattened tensor, so they may cross rows; the last may be short, and an odd last element is
    paired with the code of 0. ValueError for an empty tensor or one with NaN or infinity: either would spoil its block.
    """
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"cannot quantize {weight.dtype}: convert the weight to float32, bfloat16 or float16")
    if block_size < 2 or block_size % 2:
        raise ValueError(f"block_size {block_size} is not allowed: use an even number, such as 64")
    flat, shape = weight.detach().flatten(), tuple(weight.shape)
    if backend != "reference":
        codes, absmax = kernels.operator_of("nf4_quantize", backend, flat)(flat, block_size)
    if flat.numel() == 0 or not bool(torch.isfinite(flat if backend == "reference" else absmax).all()):
        raise ValueError(f"a weight of shape {shape} that is empty or holds NaN or infinity "
                         "cannot be quantized: find where the training or the file went wrong")
    size = flat.numel() if flat.device.type != "cpu" else block_size * max(1, DECODE_CHUNK // block_size)
    if backend == "reference":
        chunks = [quantize_blocks(chunk.float(), NF4_LEVELS, block_size) for chunk in flat.split(size)]
        codes, absmax = map(torch.cat, zip(*chunks, strict=True))
        codes = pack(codes)
    second = absmax, None, None
    if double_quantization:
        offset = absmax.new_tensor(math.fsum(absmax.tolist()) / len(absmax))  # centred, they use all of the map
        second = *quantize_blocks(absmax - offset, DYNAMIC_MAP, GROUP), offset
    plain = NF4Tensor(codes, *second, shape, block_size)
    return fit_block_scales(plain, flat.split(size)) if fit_scales else plain


def fit_block_scales(plain, chunks):
    """The NF4Tensor with the scale that leaves the least squared error in each block, out of its own and SCALE_FACTORS
    times it, each as it would be stored, and with the codes that are nearest then: no block's error grows.

    Scales below absmax are not tried. They would leave still less error, but it is the largest weight of each block
    that they cut, and a model's predictions move further for it than with absmax: tests/quant/test_nf4_weights.py.
    chunks: the flat weight, in pieces that end where a block does.
    """
    candidates = [scale_absmax(plain, factor) for factor in (1, *SCALE_FACTORS)]
    stored, scales = (torch.stack(parts) for parts in zip(*candidates, strict=True))
    blocks = [-(-chunk.numel() // plain.block_size) for chunk in chunks]
    found = [best_scales(chunk.float(), part, NF4_LEVELS, plain.block_size)
             for chunk, part in zip(chunks, scales.split(blocks, 1), strict=True)]
    best, codes = map(torch.cat, zip(*found, strict=True))
    return replace(plain, codes=pack(codes), absmax=stored.gather(0, best[None])[0])


def scale_absmax(plain, factor):
    """(`absmax` as stored, the fp32 scales that it stands for) of an NF4Tensor whose scales are multiplied; with double
    quantization to the nearest that the same groups can say."""
    if plain.absmax_scale is None:
        return plain.absmax * factor, plain.absmax * factor
    codes, offset = plain.absmax, plain.absmax_offset
    scales = dequantize_blocks(codes, plain.absmax_scale, DYNAMIC_MAP, GROUP) + offset
    if factor != 1:
        group = plain.absmax_scale.clamp(min=SMALLEST_SCALE).repeat_interleave(GROUP)[:len(codes)]
        codes = nearest((scales * factor - offset) / group, DYNAMIC_MAP)
        scales = dequantize_blocks(codes, plain.absmax_scale, DYNAMIC_MAP, GROUP) + offset
    return codes, scales


def pack(codes):
    """Two codes in a byte, the first in its high nibble; an odd last one is paired with the code of 0."""
    codes = nn.functional.pad(codes, (0, codes.numel() % 2), value=NF4_LEVELS.index(0.0))
    return codes[0::2] << 4 | codes[1::2]


def quantize_blocks(flat, levels, block_size):
    """(uint8 number of the level nearest to each x / absmax, fp32 absmax of each block), of flat fp32 x.

    A value half-way between two levels takes the lower. x is multiplied by the fp32 reciprocal of absmax,
    as GPU kernels do: division rounds differently and would give other codes near the half-way points.
    """
    blocks = nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(1)
    scaled = blocks * (1.0 / absmax.clamp(min=SMALLEST_SCALE))[:, None]
    return nearest(scaled.flatten(), levels)[:flat.numel()], absmax


def dequantize_blocks(codes, absmax, levels, block_size):
    """levels[code] * absmax in fp32, flat."""
    levels = torch.tensor(levels, dtype=torch.float32, device=codes.device)
    return levels.index_select(0, codes.int()) * absmax.repeat_interleave(block_size)[:codes.numel()]


def dequantize_in_parts(quantized, size):
    """(begin, fp32 values from there on, `size` of them) over the flat tensor; size: a multiple of the block size.

    On another device than a CPU it is all at once."""
    absmax, n, block = quantized.absmax, math.prod(quantized.shape), quantized.block_size
    if quantized.absmax_scale is not None:
        absmax = dequantize_blocks(absmax, quantized.absmax_scale, DYNAMIC_MAP, GROUP)
        absmax = absmax + quantized.absmax_offset
    pairs = level_pairs(quantized.codes.device)
    size = size if pairs.device.type == "cpu" else n
    for begin in range(0, n, size):
        codes = quantized.codes[begin // 2:(begin + size + 1) // 2].int()
        levels = pairs.index_select(0, codes).view(torch.float32)[:n - begin]
        whole = levels.numel() // block  # blocks; what is left over is the last, short one
        scales = absmax[begin // block:][:whole + 1]
        levels[:whole * block].view(-1, block).mul_(scales[:whole, None])
        if whole * block < levels.numel():
            levels[whole * block:] *= scales[-1]
        yield begin, levels


def dequantize_in_rows(quantized, dtype):
    """(first row, some rows in `dtype`) of a matrix: at most 4 MB, and a multiple of the block."""
    columns, block = quantized.shape[1], quantized.block_size
    step = block // math.gcd(columns, block)
    size = step * columns * max(1, CHUNKS_PER_MATMUL * DECODE_CHUNK // (step * columns))
    for begin, part in dequantize_in_parts(quantized, size):
        yield begin // columns, part.view(-1, columns).to(dtype)


def level_pairs(device):
    """The two fp32 levels that each byte stands for, 8 bytes in an int64: both are found in one look."""
    levels = torch.tensor(NF4_LEVELS, dtype=torch.float32, device=device)
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1).view(torch.int64).flatten()


class NF4Linear(QuantizedLinear):
    """A linear layer with a frozen weight in NF4; see `QuantizedLinear`. `backends.use_kernels` sets the first two."""

    backend, activations, backends = "reference", "fp32", kernels.KERNELS["nf4_matmul"]

    def __init__(self, stored):
        out_features, in_features = stored.shape
        padding = out_features * in_features % 2  # nibbles of the last byte that are no weight
        super().__init__(out_features, in_features, [out_features, in_features, stored.block_size, padding])
        self.block_size = stored.block_size
        for name in ("codes", "absmax", "absmax_scale", "absmax_offset"):
            self.register_buffer(name, getattr(stored, name))

    @classmethod
    def from_weight(cls, weight, block_size=BLOCK, double_quantization=True, fit_scales=False, backend="reference"):
        """Quantize a matrix (out, in)."""
        return cls(quantize_nf4(weight, block_size, double_quantization, fit_scales, backend))

    @classmethod
    def planned(cls, out_features, in_features, block_size=BLOCK, double_quantization=True, fit_scales=False):
        """The layer without its numbers, on the meta device: which buffers it has, of which sizes. fit_scales changes
        none, and no setting of a layer says how its scales were chosen: quantized anew they are absmax."""
        n = out_features * in_features
        blocks = -(-n // block_size)
        with torch.device("meta"):
            codes = torch.empty(-(-n // 2), dtype=torch.uint8)
            absmax, scale = torch.empty(blocks), torch.empty(-(-blocks // GROUP))
            second = (absmax.to(torch.uint8), scale, torch.empty(())) if double_quantization else (absmax, None, None)
        return cls(NF4Tensor(codes, *second, (out_features, in_features), block_size))

    def settings(self):
        return {"block_size": self.block_size, "double_quantization": self.absmax_scale is not None}

    def packed_weight(self):
        return NF4Tensor(self.codes, self.absmax, self.absmax_scale, self.absmax_offset,
                         (self.out_features, self.in_features), self.block_size, self.backend, self.activations)
