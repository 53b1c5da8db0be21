"""Placement: a model larger than a device, in whole layers: on the devices first, then the CPU, then left on disk.

A layer computes where its weights are, and what it reads is brought there; one on disk is read from the file in each
pass, and computes on the CPU. Keys and values stay beside the embedding, and go to the layer that asks for them.
"""

import math
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from minillama.kv_cache import KVCache
from minillama.transformer import Transformer


def place_layers(sizes, room):
    """{layer: device}, of layers {name: bytes} in the order of the forward pass: each on the first device of `room`,
    [(device, bytes)], that has space and does not stand before that of the layer before it; then on "disk"."""
    room, placed = [*room, ("disk", math.inf)], {}
    for name, size in sizes.items():
        while size > room[0][1]:
            room.pop(0)
        placed[name] = room[0][0]
        room[0] = room[0][0], room[0][1] - size
    return placed


def load_placed(weights, room, dtype):
    """(the `Transformer` of unread `Weights`, {layer: device}), for inference, equal to `build_model`'s."""
    layers = {}
    for name, tensor in weights.tensors.items():
        layer = ".".join(name.split(".")[:2 if name.startswith("layers.") else 1])
        layers.setdefault(layer, {})[name.removeprefix(f"{layer}.")] = tensor
    placed = place_layers({layer: dtype.itemsize * sum(math.prod(tensor.shape) for tensor in tensors.values())
                           for layer, tensors in layers.items()}, room)
    first = placed["tok_embeddings"]
    if weights.quantization or first == "disk":
        raise ValueError(f"{weights.source}: only plain weights are placed, and the embedding, which every pass looks "
                         "up, in memory: leave --device-map out, or give more room or a narrower --dtype")
    with torch.device("meta"):
        model = Transformer(weights.config)
    for layer, device in {"output": first, **placed}.items():  # a tied head is the embedding
        attach(model.get_submodule(layer), layers.get(layer, {}), device, dtype)
    model.tie_weights()
    model.output.register_forward_hook(lambda head, read, scores: scores.to(first))  # where tokens are chosen
    return model.eval(), placed


def attach(part, tensors, device, dtype):
    """Let a part of the model compute on `device`, with these weights; from "disk" they are read for each call."""
    def fill(*_):
        for name, tensor in tensors.items():
            owner, _, parameter = name.rpartition(".")
            weight = nn.Parameter(tensor.read().to(device=where, dtype=dtype), requires_grad=False)
            setattr(part.get_submodule(owner), parameter, weight)

    def forget(*_):
        part.to("meta")

    where = "cpu" if device == "disk" else device
    part.register_forward_pre_hook(partial(move_inputs, where))
    if device == "disk":
        part.register_forward_pre_hook(fill)
        part.register_forward_hook(forget)
    else:
        fill()


def move_inputs(device, part, inputs):
    """What a part is called with, on its device: tensors, and what a cache returns."""
    def append(cache, *kept):
        return tuple(found.to(device) for found in cache.append(*kept))

    found = [SimpleNamespace(append=partial(append, x)) if isinstance(x, KVCache) else x for x in inputs]
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in found)
