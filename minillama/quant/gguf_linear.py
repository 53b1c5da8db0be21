"""Linear layers whose weight stays in a GGUF file, memory-mapped, in the blocks in which it lies there.

    y = x W^T,  W = (scale of its block) * code

What a block holds: `checkpoint.gguf_blocks`. Nothing is copied or packed anew: a model costs the pages that are read.
"""

import math
from dataclasses import replace

import torch

from minillama.quant.quantized_linear import QuantizedLinear

KEPT = ("Q4_0", "Q8_0", "Q6_K")  # types that the compiled products read
HEAD, TABLE = "output.weight", "tok_embeddings.weight"


class GGUFLinear(QuantizedLinear):
    """A frozen linear layer over `raw`, the bytes (uint8) of a matrix (out, in) in blocks of the type `block`.

    With `backend` "cpu" the compiled loops multiply: x in fp32 with the very numbers that the blocks stand for, or,
    with `activations` "int8", x rounded to int8 in parts of 32 columns, by sums of integers. Else W is decoded first.
    """

    backend, activations, backends = "reference", "fp32", ("cpu",)

    def __init__(self, raw, block, shape):
        super().__init__(*shape, list(shape))
        self.block = block
        self.register_buffer("blocks", raw.view(shape[0], -1))

    def packed_weight(self):
        return self

    def dequantize(self, dtype=torch.float32):
        W = self.matrix().read() if self.backend == "cpu" else self.block.decode(self.blocks.flatten())
        return W.view(self.out_features, self.in_features).to(dtype)

    def matrix(self):
        """The weight as the engine reads it (`engine.matrix_of`)."""
        bits = 8.0 if self.activations == "int8" else 0.0
        return torch.classes.minillama.Matrix(self.block.name.lower(), [self.blocks], self.out_features,
                                              self.in_features, bits)

    def product(self, x):
        """x W^T for x (..., in), in the dtype of x."""
        if self.backend != "cpu":
            return x @ self.dequantize(x.dtype).T
        rows = x.reshape(-1, self.in_features).float().contiguous()
        few = len(rows) <= 8 or self.activations == "int8"
        y = self.matrix().product(rows) if few and len(rows) else rows @ self.dequantize().T
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def product_backward(self, dy):
        """dy W with the dequantized W."""
        return dy @ self.dequantize(dy.dtype)


def keep_blocks(weights):
    """The same `Weights` of a GGUF file, every linear layer of a type in KEPT as a `GGUFLinear` over the file's bytes;
    a head that is the embedding table too, whose rows are decoded for the embedding beside it."""
    def kept(tensor):
        return replace(tensor, layer=lambda: GGUFLinear(tensor.raw, tensor.block, tensor.shape))

    tensors = {name: kept(tensor) if is_kept(tensor) and name != TABLE else tensor
               for name, tensor in weights.tensors.items()}
    if weights.config.tie_embeddings and is_kept(tensors[TABLE]):
        tensors[HEAD] = kept(tensors[TABLE])
        weights = replace(weights, config=replace(weights.config, tie_embeddings=False))
    return replace(weights, tensors=tensors)


def bytes_held(weights, size, kept):
    """Bytes that the model will take: blocks that are kept as many as in the file, all other numbers `size` each."""
    if not kept:
        return weights.config.n_parameters() * size
    return sum(len(tensor.raw) if is_kept(tensor) and name != TABLE else math.prod(tensor.shape) * size
               for name, tensor in weights.tensors.items())


def is_kept(tensor):
    """Whether a stored tensor lies in blocks that a `GGUFLinear` reads."""
    return tensor.block is not None and tensor.block.name in KEPT
