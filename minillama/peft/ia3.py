"""IA3: keys, values and what the feed-forward layer holds inside are scaled, number by number (arXiv 2205.05638).

    k = l_k * W_k x,  v = l_v * W_v x,  W_2 (l_f * (silu(W_1 x) * W_3 x))        (l = 1 at the start: the base)

2 K d + F numbers a block. Scales of rows or of columns go into the weight: it merges.
"""

import torch
from torch import nn

from minillama.peft.lora import device_and_dtype_of, exact_weight
from minillama.quant.quantized_linear import QuantizedLinear, replace_module, wrap_linears

SCALED = {"attention.wk": "output", "attention.wv": "output", "feed_forward.w2": "input"}


class WithScale(nn.Module):
    """A frozen linear layer whose output, or input, is scaled by `scale`, (out,) or (in,), which learns."""

    def __init__(self, base, of_input):
        super().__init__()
        self.base, self.of_input = base, of_input
        width = base.in_features if of_input else base.out_features
        self.scale = nn.Parameter(torch.ones(width, **device_and_dtype_of(base)))

    def forward(self, x):
        if self.of_input:
            return self.base((x * self.scale).to(x.dtype))
        y = self.base(x)
        return (y * self.scale).to(y.dtype)


def add_ia3(model):
    """Scale keys, values and inner feed-forward numbers of every block, in place; all else is frozen."""
    wrap_linears(model, SCALED, lambda name, base: WithScale(base, SCALED[name.split(".", 2)[2]] == "input"))


def merge_ia3(model):
    """Fold the scales into the weights, in place. ValueError for a quantized base, whose steps would round them."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, WithScale)}
    if any(isinstance(layer.base, QuantizedLinear) for layer in layers.values()):
        raise ValueError("the base is quantized, and would round the scales: dequantize_linears(model) first")
    for path, layer in layers.items():
        scale = layer.scale.detach() if layer.of_input else layer.scale.detach()[:, None]
        weight = (exact_weight(layer.base) * scale).to(layer.base.weight.dtype)
        layer.base.weight = nn.Parameter(weight, requires_grad=False)
        replace_module(model, path, layer.base)
