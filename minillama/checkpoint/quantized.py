"""Quantized checkpoints: `params.json` as Meta's with a "quantization" entry, `quantized.safetensors`, a tokenizer.

    "quantization": {"kind": "nf4", "block_size": 64, "double_quantization": true}

The container is safetensors, whose reader and checks are there already and which every tool can list; no form of
others keeps NF4 with its second level as plain arrays with their layout beside them. The file is the state dict of
the quantized model: `layers.0.attention.wq.codes`, `.absmax`, ... , and `.layout`, which says how the bytes are to be
read. All linear layers are quantized, the output head in int8 where it was asked for ("head": "int8") or not at all;
the embedding and the norms stay as they are.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

from minillama.checkpoint.meta import config_from_params, params_of
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors_stream
from minillama.checkpoint.weights import Stored, Weights, as_stored, expected_shapes
from minillama.quant.quantize_linears import KINDS
from minillama.system.settings import flag, number, read_settings, whole, write_settings

TENSOR_FILE = "quantized.safetensors"
HEAD = "output.weight"


def quantize_weights(weights, kind, head=None, backend="reference", **settings):
    """The same `Weights` with every linear layer but the head quantized, each when it is read; the settings are
    `NF4Linear.from_weight`'s (block_size, double_quantization, fit_scales) or `Int8Linear`'s (threshold).

    head: "int8" quantizes the head too, in that kind. backend: whose code finds the codes in NF4, which are the same.
    ValueError where they are quantized already: twice rounded is worse than either; or where the head asked for is the
    embedding table.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not known: use one of {list(KINDS)}")
    if weights.quantization:
        raise ValueError(f"{weights.source} is quantized already ({weights.quantization['kind']}): quantize the model "
                         "it was made from")
    if head not in (None, "int8"):
        raise ValueError(f"head {head!r} is not known: use int8, or leave it as it is")
    if head and weights.config.tie_embeddings:
        raise ValueError(f"{weights.source}: the head is the embedding table, which stays as it is: leave out head "
                         f"{head}")
    dtype, source = weights.tensors["tok_embeddings.weight"].dtype, weights.source
    of_the_format = KINDS[kind].planned(2, 2, **settings).settings()
    quantization = {"kind": kind, **of_the_format, **({"head": head} if head else {})}

    def quantized(name, tensor):
        made, of_layer = _form_of(name, quantization)
        given = of_layer if name == HEAD else settings | ({"backend": backend} if kind == "nf4" else {})

        def layer():
            try:
                return made.from_weight(tensor.read(), **given)
            except (ValueError, TypeError) as error:
                raise type(error)(f"{source}: {name}: {error}") from None

        return Stored(tensor.shape, dtype, lambda: layer().dequantize(dtype), layer=layer)

    tensors = {name: quantized(name, tensor) if _form_of(name, quantization) else tensor
               for name, tensor in weights.tensors.items()}
    return replace(weights, tensors=tensors, quantization=quantization)


def _form_of(name, quantization):
    """(class, settings) of the layer whose weight has that name; None where it is not quantized."""
    settings = dict(quantization)
    kind, head = settings.pop("kind"), settings.pop("head", None)
    if ".attention.w" in name or ".feed_forward.w" in name:
        return KINDS[kind], settings
    return (KINDS[head], {}) if name == HEAD and head else None


def write_quantized(folder, weights):
    """Write what `quantize_weights` gives into the folder, a layer at a time; each file appears whole or not at all."""
    planned = {}
    for name, tensor in weights.tensors.items():
        if tensor.layer:
            kind, settings = _form_of(name, weights.quantization)
            plan = kind.planned(*tensor.shape, **settings).state_dict()
            planned |= {name.replace(".weight", f".{part}"): value for part, value in plan.items()}
        else:
            planned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    write_safetensors_stream(Path(folder) / TENSOR_FILE, planned, _parts(weights))
    params = params_of(weights.config) | {"quantization": settings_to_json(weights.quantization)}
    write_settings(Path(folder) / "params.json", params)


def _parts(weights):
    for name, tensor in weights.tensors.items():
        if tensor.layer:
            state = tensor.layer().state_dict()
            yield from ((name.replace(".weight", f".{part}"), value) for part, value in state.items())
        else:
            yield name, tensor.read()


def read_quantized(folder):
    """The `Weights` in a quantized folder, mapped and not loaded. ValueError if damaged: the sizes of all parts are
    held against shape and settings before anything is made of them."""
    folder = Path(folder)
    params, path = read_settings(folder / "params.json"), folder / "params.json"
    settings = settings_from_json(params.get("quantization"), path)
    parts, path = read_safetensors(folder / TENSOR_FILE), folder / TENSOR_FILE
    table = parts.get("tok_embeddings.weight")
    if table is None or table.dim() != 2:
        raise ValueError(f"{path}: tok_embeddings.weight is missing or no matrix: it is damaged")
    head = {name: as_stored(parts[name]) for name in ("tok_embeddings.weight", "output.weight") if name in parts}
    config = config_from_params(params, folder / "params.json", head)
    if config.n_layers > len(parts):  # before a table is made from an unchecked count
        raise ValueError(f"{path}: n_layers is {config.n_layers} but there are {len(parts)} tensors: cut short")
    weights = Weights(config, {}, folder, quantization=settings)
    for name, shape in expected_shapes(config).items():
        if form := _form_of(name, settings):
            weights.tensors[name] = _take_layer(name, shape, parts, *form, table.dtype, path)
        elif name in parts:
            weights.tensors[name] = as_stored(parts.pop(name))
    if parts:
        raise ValueError(f"{path}: {next(iter(parts))} is not part of a LLaMA of this shape")
    return weights


def settings_to_json(quantization):
    """The "quantization" entry as JSON can hold it, which has no infinity."""
    return {name: None if value == math.inf else value for name, value in quantization.items()}


def settings_from_json(given, path):
    """The "quantization" entry with every value checked."""
    kind = given.get("kind") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path}: quantization is {given!r:.200}: expected an object with kind {' or '.join(KINDS)}")
    if given.get("head") not in (None, "int8"):
        raise ValueError(f"{path}: quantization has head {given['head']!r:.200}: expected int8, or none")
    head = {"head": "int8"} if given.get("head") else {}
    if kind == "int8":
        infinite = "threshold" in given and given["threshold"] is None
        return {"kind": kind, "threshold": math.inf if infinite else number(given, "threshold", path), **head}
    block_size = whole(given, "block_size", path)
    if block_size % 2:
        raise ValueError(f"{path}: block_size is {block_size}: expected an even number")
    double = flag(given, "double_quantization", path, True)
    return {"kind": kind, "block_size": block_size, "double_quantization": double, **head}


def _take_layer(name, shape, parts, kind, settings, dtype, path):
    """One quantized weight, its parts taken out of `parts` once each has the shape, dtype and layout it must have."""
    module = name.removesuffix(".weight")
    codes = parts.get(f"{module}.codes")
    if codes is None or codes.numel() < math.prod(shape) / 2:  # before a layer is planned from an unchecked shape
        raise ValueError(f"{path}: {module}.codes is missing or too short for {list(shape)}: it is damaged, or its "
                         "settings belong to another model")
    planned, found = kind.planned(*shape, **settings), {}
    for part, plan in planned.state_dict().items():
        found[part] = tensor = parts.pop(f"{module}.{part}", None)
        if tensor is None or (tensor.shape, tensor.dtype) != (plan.shape, plan.dtype):
            given = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{path}: {module}.{part} is {given}: expected {plan.dtype} {list(plan.shape)}")
    if found["layout"].tolist() != planned.layout.tolist():
        raise ValueError(f"{path}: {module}.layout is {found['layout'].tolist()}, its settings ask for "
                         f"{planned.layout.tolist()}: they belong to another file")

    def layer():
        made = kind.planned(*shape, **settings)
        made.load_state_dict(found, assign=True)
        return made

    return Stored(tuple(shape), dtype, lambda: layer().dequantize(dtype), layer=layer)
