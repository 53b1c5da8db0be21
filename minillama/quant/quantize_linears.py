"""Put quantized layers in the place of a model's linear layers, and plain ones back."""

import zlib

from torch import nn

from minillama.quant.int8 import Int8Linear
from minillama.quant.nf4 import NF4Linear
from minillama.quant.quantized_linear import QuantizedLinear, matching_modules, name_matches, replace_module

KINDS = {"nf4": NF4Linear, "int8": Int8Linear}


def quantize_linears(model, patterns=("*",), kind="nf4", skip=("output",), **settings):
    """Replace the linear layers named by `patterns` by NF4Linear or Int8Linear, in place; return their names.

    patterns and skip: shell wildcards over module names or their ends (`matching_modules`). The output
    head is skipped by default, as in QLoRA and LLM.int8; embeddings are no linear layers and stay as they
    are. settings go to `from_linear`: block_size, double_quantization and fit_scales for "nf4", threshold for "int8".
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not known: use one of {list(KINDS)}")
    linears = matching_modules(model, patterns, nn.Linear)
    names = [name for name in linears if not any(name_matches(name, pattern) for pattern in skip)]
    for name in names:
        replace_module(model, name, KINDS[kind].from_linear(linears[name], **settings))
    return names


def dequantize_linears(model, dtype):
    """Plain linear layers in the place of the quantized ones, in place: the weights that were computed with."""
    for name, layer in [pair for pair in model.named_modules() if isinstance(pair[1], QuantizedLinear)]:
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(layer.dequantize(dtype), requires_grad=False)
        replace_module(model, name, linear)


def quantization_of(model):
    """{"kind": ..., its settings, "crc32": of the codes of the first quantized layer}; None where a model has none."""
    layer = next((module for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    if layer is None:
        return None
    kind = next(kind for kind, made in KINDS.items() if isinstance(layer, made))
    return {"kind": kind, **layer.settings(), "crc32": zlib.crc32(layer.codes.cpu().numpy())}
