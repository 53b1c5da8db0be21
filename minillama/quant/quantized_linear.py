"""What every frozen quantized linear layer shares: the gradient, the dtypes, and finding layers by name."""

import fnmatch

import torch
from torch import nn


class QuantizedLinear(nn.Module):
    """y = x W^T for a frozen, quantized W; the gradient goes to x alone, dx = dy W.

    A subclass keeps its numbers in buffers, gathers them in `packed_weight()` (an object with
    `dequantize(dtype)`, `product(x)` and `product_backward(dy)`), and is built from a matrix by `from_weight(weight,
    **settings())`, without numbers by `planned(out, in, **settings())`. Its buffer `layout` (int64) says how the
    bytes are to be read and travels in the state dict; loading bytes of another layout is an error.
    """

    def __init__(self, out_features, in_features, layout):
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.register_buffer("layout", torch.tensor(layout, dtype=torch.int64, device="cpu"))

    @classmethod
    def from_linear(cls, linear, **settings):
        """The quantized twin of an `nn.Linear` without bias (LLaMA has none)."""
        if linear.bias is not None:
            raise ValueError(f"{linear} has a bias, which {cls.__name__} does not keep: "
                             "quantize layers without one")
        return cls.from_weight(linear.weight.detach(), **settings)

    def dequantize(self, dtype=torch.float32):
        """W (out, in), computed in fp32 and rounded once to `dtype`."""
        return self.packed_weight().dequantize(dtype)

    def forward(self, x):
        """(..., in) -> (..., out), in the dtype of x."""
        return FrozenProduct.apply(x, self.packed_weight())

    def _apply(self, fn, recurse=True):
        # model.bfloat16() means the activations: block scales rounded to 8 bits would damage every weight.
        buffers = dict(self.named_buffers(recurse=False))
        exact = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            if getattr(self, name).dtype != buffer.dtype:
                setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        theirs = state_dict.get(prefix + "layout")
        if theirs is not None and theirs.tolist() != self.layout.tolist():
            errors.append(f"{prefix}layout is {theirs.tolist()}, this layer's is {self.layout.tolist()}: the "
                          "bytes mean other weights; first quantize the model with the settings of the file")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


class FrozenProduct(torch.autograd.Function):
    """x -> x W^T keeping only the stored bits for the backward pass, which dequantizes a second time.

    Saving the dequantized W instead would hold every layer's full-size matrix until the backward pass ends,
    which is the memory that quantization was to save.
    """

    @staticmethod
    def forward(ctx, x, stored):
        ctx.stored = stored
        return stored.product(x)

    @staticmethod
    def backward(ctx, dy):
        return ctx.stored.product_backward(dy), None


def matching_modules(model, patterns, kinds):
    """{name: module} of the modules of `kinds` that a pattern names, in the model's order.

    Patterns are shell wildcards over the whole dotted name or its end: "attention.wq" means wq of every
    layer, "layers.0.*" everything in the first. ValueError for a pattern that names nothing: a typing
    slip would otherwise leave layers out unseen.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    candidates = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    for pattern in patterns:
        if not any(name_matches(name, pattern) for name in candidates):
            raise ValueError(f"{pattern!r} matches none of the {len(candidates)} linear layers, such as "
                             f"{list(candidates)[:8]}: give a name whole or its end, * for any text")
    return {name: module for name, module in candidates.items()
            if any(name_matches(name, pattern) for pattern in patterns)}


def name_matches(name, pattern):
    """Whether the pattern names the whole dotted name or its last parts."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def replace_module(model, name, module):
    """Put `module` where the dotted `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def wrap_linears(model, patterns, wrap):
    """Freeze the model, and put wrap(name, layer) in the place of every linear layer, plain or quantized, that a
    pattern names (`matching_modules`). Returns the names."""
    found = matching_modules(model, patterns, (nn.Linear, QuantizedLinear))
    model.requires_grad_(False)
    for name, layer in found.items():
        replace_module(model, name, wrap(name, layer))
    return list(found)
