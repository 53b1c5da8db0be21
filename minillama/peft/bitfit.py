"""BitFit: only biases learn (arXiv 2106.10199). LLaMA has none, so each linear layer of a block is given one.

    y = W x + b, b = 0 at the start: the base, bit for bit; as many numbers as the layers have outputs

LLaMA's file forms have no place for a bias, so it cannot be merged.
"""

import torch
from torch import nn

from minillama.peft.lora import device_and_dtype_of
from minillama.quant.quantized_linear import wrap_linears


class WithBias(nn.Module):
    """A frozen linear layer, and a bias (out,) that learns."""

    def __init__(self, base):
        super().__init__()
        self.base, self.bias = base, nn.Parameter(torch.zeros(base.out_features, **device_and_dtype_of(base)))

    def forward(self, x):
        y = self.base(x)
        return (y + self.bias).to(y.dtype)


def add_biases(model):
    """Give every linear layer but the head a bias, in place; all else is frozen."""
    wrap_linears(model, ("attention.*", "feed_forward.*"), lambda name, base: WithBias(base))
