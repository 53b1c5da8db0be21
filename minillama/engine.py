"""The decoding engine: one token of every row through the whole model in one call, on the model's own tensors.

The C++ of csrc/cpu/engine.cpp reads weights and KV cache where PyTorch keeps them, so that a prompt may be read by the
model and the text continued by the engine. Activations and sums are fp32, whatever the weights are kept in.
"""

import torch
from torch import nn

from minillama import kernels
from minillama.quant.int8 import Int8Linear
from minillama.quant.nf4 import NF4Linear


def matrix_of(layer):
    """The weight of an `nn.Linear` without bias, a `NF4Linear` or an `Int8Linear`, as the engine reads it: an object
    with `product(x)`, W x for 1 to 8 rows x (n, in) in fp32. ValueError for another layer.

    It holds the layer's tensors, not copies: what is written into them later is what it multiplies with.
    """
    kernels.require("cpu")
    if type(layer) is nn.Linear and layer.bias is None:
        form, parts, setting = "plain", [layer.weight.detach()], 0.0
    elif type(layer) is NF4Linear:
        form, parts, setting = "nf4", [part for part in layer.stored().parts() if part is not None], layer.block_size
    elif type(layer) is Int8Linear:
        form, parts, setting = "int8", [layer.codes, layer.absmax], layer.threshold
    else:
        raise ValueError(f"the engine has no product for {layer}: it knows Linear without bias, NF4Linear, Int8Linear")
    return torch.classes.minillama.Matrix(form, parts, layer.out_features, layer.in_features, float(setting))
