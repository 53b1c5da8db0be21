"""The decoding engine: one token of every row through the whole model in one call, on the model's own tensors.

The C++ of csrc/cpu/engine.cpp reads weights and KV cache where PyTorch keeps them, so that a prompt may be read by the
model and the text continued by the engine. Activations and sums are fp32, whatever the weights are kept in.
"""

import torch
from torch import nn

from minillama import kernels
from minillama.backends import backend_of
from minillama.quant.gguf_linear import GGUFLinear
from minillama.quant.int8 import Int8Linear
from minillama.quant.nf4 import NF4Linear
from minillama.rms_norm import RMSNorm
from minillama.swiglu import SwiGLU
from minillama.transformer import Block, Transformer

MOST_ROWS = 8  # of a batch; with more, PyTorch's matrix products are as fast
LAYERS = ("Linear", "Embedding", "RMSNorm", "NF4Linear", "Int8Linear", "GGUFLinear")  # what it reads, none with a bias


class Engine:
    """A `Transformer` as the engine reads it. It holds the tensors that the model has now, not copies: what is written
    into them later counts, tensors that take their place do not. ValueError with the reason where `refusal` has one."""

    def __init__(self, model):
        if reason := refusal(model):
            raise ValueError(f"the engine cannot decode this model: {reason}")
        c, self.model = model.config, model
        shape = [c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_dim, c.vocab_size]
        matrices = [matrix_of(module) for module in _modules(model)]
        self.compiled = torch.classes.minillama.Engine(matrices, shape, c.norm_eps, model.frequencies)

    def step(self, tokens_B, cache):
        """Logits of the next token, (B, V) fp32, behind tokens_B (int64, B up to MOST_ROWS), whose keys and values are
        added to the cache: what `model(tokens_B[:, None], cache)[:, -1]` gives, but for rounding. No gradient."""
        return self.stages(tokens_B, cache, wanted=False)[0]

    def stages(self, tokens_B, cache, wanted=True):
        """(logits, the residual stream as the embedding and each layer leave it, and normed at last: (L + 2, B, D))."""
        self.model._check(tokens_B[:, None], cache, None, None)
        found = self.compiled.step(tokens_B, cache.keys, cache.values, cache.length, cache.left_pad_B, wanted)
        cache.advance(1)
        return found


def engine_for(model):
    """The `Engine` of a model whose backend is "cpu" throughout (`backends.use_kernels`) and that it can decode; else
    None: then PyTorch decodes."""
    return None if refusal(model) else Engine(model)


def refusal(model):
    """Why the engine does not decode this model, in a few words; None if it does."""
    if type(model) is not Transformer or any((type(block), type(block.feed_forward)) != (Block, SwiGLU)
                                             for block in model.layers):
        return f"it is a {type(model).__name__} with parts of its own"
    if model.virtual_tokens is not None:
        return "it reads virtual tokens before its text"
    if any(backend_of(block) != "cpu" for block in model.layers):
        return f"its kernels are {backend_of(model)!r}, not 'cpu'"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "functions are hooked into its forward pass"
    for module in _modules(model):
        if type(module).__name__ not in LAYERS or getattr(module, "bias", None) is not None:
            return f"it has a layer that is a {type(module).__name__}"
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.device.type != "cpu" or tensor.dtype == torch.float64 or not tensor.is_contiguous():
                return f"its weights are {tensor.dtype} on {tensor.device}, or not contiguous"
    return None


def _modules(model):
    """What holds the model's weights, in the order in which csrc/bind_engine.cpp takes them."""
    yield model.tok_embeddings
    for block in model.layers:
        attention, feed_forward = block.attention, block.feed_forward
        yield from (block.attention_norm, attention.wq, attention.wk, attention.wv, attention.wo)
        yield from (block.ffn_norm, feed_forward.w1, feed_forward.w2, feed_forward.w3)
    yield from (model.norm, model.output)


def matrix_of(layer):
    """The weight of one of LAYERS as the engine reads it, the gain of a norm as a matrix of one row: an object with
    `product(x)`, W x for 1 to 8 rows x (n, in) in fp32, over the layer's own tensors. ValueError for another layer."""
    kernels.require("cpu")
    setting = 0.0
    if type(layer) is GGUFLinear:
        return layer.matrix()
    if type(layer) in (nn.Linear, nn.Embedding, RMSNorm) and getattr(layer, "bias", None) is None:
        form, parts = "plain", [torch.atleast_2d(layer.weight.detach())]
        rows, columns = parts[0].shape
    elif type(layer) in (NF4Linear, Int8Linear):
        form, rows, columns = type(layer).__name__.removesuffix("Linear").lower(), layer.out_features, layer.in_features
        parts = [layer.codes, layer.absmax] if form == "int8" else [p for p in layer.packed_weight().parts()
                                                                    if p is not None]
        setting = layer.threshold if form == "int8" else layer.block_size
        form += "_int8" if form == "nf4" and layer.activations == "int8" else ""
    else:
        raise ValueError(f"the engine has no product for {layer}: it knows {', '.join(LAYERS)}")
    return torch.classes.minillama.Matrix(form, parts, rows, columns, float(setting))
