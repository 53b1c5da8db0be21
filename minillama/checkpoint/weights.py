"""A model at rest: its shape and its tensors in Meta's names, each read only when it is asked for.

Every reader of a file form returns a `Weights`, every writer takes one, and `build_model` turns one into a
`Transformer`. So a model larger than the memory can pass from one form to another, a tensor at a time.
"""

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from minillama.config import ModelConfig
from minillama.quant.quantized_linear import QuantizedLinear, replace_module
from minillama.transformer import Transformer


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: `shape` and `dtype` are known and checked, the numbers come with `read()`."""

    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    made: bool = True  # read() makes a new tensor (joined, reordered, decoded), not a view of the file
    layer: Callable[[], QuantizedLinear] | None = None  # the layer whose weight this is, where it is quantized;
    # read() then dequantizes
    block: Any = None  # the type of a GGUF file (`gguf_blocks.Block`) that read() decodes
    parts: Any = None  # (axis, tensors, change): read() joins them and moves rows; for `read_part`
    raw: Any = None  # the bytes that are its blocks

    @property
    def nbytes(self):
        """Bytes that the tensor takes in its file."""
        count = math.prod(self.shape)
        return count // self.block.numbers * self.block.bytes if self.block else count * self.dtype.itemsize


@dataclass
class Weights:
    """What a file holds. Names, shapes and the row order of wq and wk (interleaved RoPE pairs) are Meta's."""

    config: ModelConfig
    tensors: dict  # Meta's parameter name -> Stored; no "output.weight" where the config ties it
    source: Path  # the folder or file they come from, for messages
    tokenizer: Any = None  # a tokenizer that the file carries inside (GGUF), else None
    notes: list = field(default_factory=list)  # oddities a reader accepted, one sentence each
    quantization: dict | None = None  # {"kind": "nf4" or "int8", and its settings}, where layers are quantized


def as_stored(tensor, change=None):
    """A tensor as it is, or as `change` makes it when it is read, of the same shape and dtype."""
    read = (lambda: tensor) if change is None else (lambda: change(tensor))
    return Stored(tuple(tensor.shape), tensor.dtype, read, made=change is not None, parts=(0, [tensor], change))


def read_part(tensor, axis, begin, end):
    """Numbers `begin` to `end` along an axis of a `Stored`. Of a file's own tensors the others are not read, a
    page of the system aside; what is decoded is decoded whole."""
    if tensor.parts is None:
        return tensor.read().narrow(axis, begin, end - begin).clone()
    joined, tensors, change = tensor.parts
    if change is not None and axis == 0:
        return tensors[0][change(torch.arange(tensor.shape[0])[:, None])[begin:end, 0]]
    found, first = [], 0
    for each in tensors:  # each is asked for what it has of the numbers: they are joined along this axis, or across it
        size = each.shape[axis]
        low, high = min(max(begin - first, 0), size), min(max(end - first, 0), size)
        found.append(each.narrow(axis, low, high - low))
        first += size if axis == joined else 0
    if axis == joined:
        found = [each for each in found if each.numel()] or found[:1]
    whole = torch.cat(found, joined) if len(found) > 1 else found[0]
    return whole if change is None else change(whole)


def expected_shapes(config):
    """{Meta's parameter name: shape} of a model of this shape, in the order of the forward pass."""
    D, F, V = config.dim, config.hidden_dim, config.vocab_size
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    block = {"attention_norm": (D,), "attention.wq": (q, D), "attention.wk": (kv, D), "attention.wv": (kv, D),
             "attention.wo": (D, q), "ffn_norm": (D,), "feed_forward.w1": (F, D), "feed_forward.w2": (D, F),
             "feed_forward.w3": (F, D)}
    shapes = {"tok_embeddings.weight": (V, D)}
    for layer in range(config.n_layers):
        shapes.update({f"layers.{layer}.{name}.weight": shape for name, shape in block.items()})
    shapes["norm.weight"] = (D,)
    if not config.tie_embeddings:
        shapes["output.weight"] = (V, D)
    return shapes


def resolve_tied_head(config, tensors, path):
    """(config, notes). Where the config ties the head to the embedding, a head with the same numbers is taken out of
    `tensors`; one with other numbers stays, the returned config does not tie it, and a note says so."""
    table, head = tensors.get("tok_embeddings.weight"), tensors.get("output.weight")
    if not config.tie_embeddings or table is None or head is None:
        return config, []
    if table.shape == head.shape and table.dtype == head.dtype and all(  # one row mostly tells them apart
            torch.equal(read_part(table, 0, 0, rows), read_part(head, 0, 0, rows)) for rows in (1, table.shape[0])):
        del tensors["output.weight"]
        return config, []
    return replace(config, tie_embeddings=False), [f"{path} ties the output head to the embedding, but the file holds "
                                                   "a head with other numbers: that head is used"]


def check_tensors(weights):
    """Return `weights` if all tensors of the model are there, no others, in right shapes; else ValueError."""
    config, tensors, source = weights.config, weights.tensors, weights.source
    if config.n_layers > len(tensors):  # before a table is made from an unchecked count
        raise ValueError(f"{source}: n_layers is {config.n_layers} but there are {len(tensors)} tensors: the "
                         "file is cut short, or its settings belong to another model")
    shapes = expected_shapes(config)
    missing, extra = [n for n in shapes if n not in tensors], [n for n in tensors if n not in shapes]
    if missing or extra:
        wrong = f"{missing[0]} is missing" if missing else f"{extra[0]} is not part of a LLaMA of this shape"
        raise ValueError(f"{source}: {wrong} ({len(missing)} tensors missing, {len(extra)} unexpected)")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{source}: {name} has shape {list(tensors[name].shape)}, but the settings "
                             f"beside it ask for {list(shape)}")
        if not tensors[name].dtype.is_floating_point or tensors[name].dtype.itemsize == 1:
            raise ValueError(f"{source}: {name} is {tensors[name].dtype}: expected 16-bit floats or wider")
    return weights


def common_dtype(weights):
    """The narrowest dtype that holds every tensor of the file exactly."""
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in weights.tensors.values()})


class _NoInitialValues(TorchFunctionMode):
    """On the meta device PyTorch draws them by Python code that loads torch.compile, which takes as long as PyTorch."""
    def __torch_function__(self, function, types, arguments=(), named=None):
        drawn = function in (nn.init.normal_, nn.init.kaiming_uniform_)
        return None if drawn else function(*arguments, **(named or {}))


def planned_model(config):
    """A `Transformer` without numbers, on the meta device: shapes that take no memory."""
    with torch.device("meta"), _NoInitialValues():
        return Transformer(config)


def build_model(weights, device="cpu", dtype=None, spend=False):
    """The `Transformer` with these weights. dtype None keeps the file's (the widest, if it mixes several); quantized
    layers keep their bits whatever it is. spend: take the tensors out of `weights` one after another, so that what
    was read of a file to be quantized leaves memory at once."""
    check_tensors(weights)
    dtype = common_dtype(weights) if dtype is None else dtype
    if not dtype.is_floating_point:
        raise ValueError(f"dtype {dtype} cannot hold weights: use torch.float32, bfloat16 or float16")
    model = planned_model(weights.config)  # each parameter is then replaced by a stored tensor
    for name in list(weights.tensors):
        tensor = weights.tensors.pop(name) if spend else weights.tensors[name]
        module, _, parameter = name.rpartition(".")
        if tensor.layer:
            replace_module(model, module, tensor.layer().to(device))
            continue
        value = tensor.read().to(device=device, dtype=dtype)
        setattr(model.get_submodule(module), parameter, nn.Parameter(value))
    model.tie_weights()
    return model


def from_model(model, source="the model"):
    """The `Weights` of a model in memory: its own tensors, a tied table once; nothing is copied."""
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ValueError(f"{source} has quantized layers, which this form cannot hold: write it before it is "
                         "quantized, or quantize the file")
    whole = getattr(type(next(model.parameters())), "full_tensor", None)  # of a model in shards, when it is read
    tensors = {name: as_stored(tensor.detach(), whole) for name, tensor in model.named_parameters()}
    return check_tensors(Weights(model.config, tensors, Path(source)))
