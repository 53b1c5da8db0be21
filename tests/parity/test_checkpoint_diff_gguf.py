"""A quantized GGUF beside its original is told by its type; a mistake in it is named all the same."""

import re
from dataclasses import replace

import pytest
import torch
from checkpoints import model_of
from mutants import Mutant
from test_gguf_blocks import kind_of

from minillama.checkpoint.gguf_blocks import BLOCKS
from minillama.checkpoint.weights import Stored, from_model
from minillama.config import ModelConfig
from minillama.parity.checkpoint_diff import compare_checkpoints

CONFIG = ModelConfig(256, 2, 4, 96, hidden_dim=512, max_seq_len=48)
PARTS = {"Q2_K": (16, 15), "Q3_K": (16, 31), "Q4_K": (32, 63), "Q5_K": (32, 63), "Q6_K": (16, 127),
         "Q4_0": (32, 0), "Q4_1": (32, 0), "Q5_0": (32, 0), "Q5_1": (32, 0), "Q8_0": (32, 0)}
W1, WQ = "layers.1.feed_forward.w1.weight", "layers.0.attention.wq.weight"


def steps_of(scales, most):
    """Scales of a block's parts, (blocks, parts, 1), each in steps of the largest; fp16 where there are none."""
    top = scales.amax(1, keepdim=True)
    return (scales / top * most).round() / most * top.half().float() if most else scales.half().float()


def quantized(x, name, searches=(1.0,)):
    """What a block type makes of x, as llama.cpp does it: each part's scale is the one of `searches` times the full
    range that leaves the least error, weighted by x^2; then the scales and leasts of a block are rounded."""
    part, most = PARTS[name]
    bits, least = int(name[1]), name.endswith("_1") or name in ("Q2_K", "Q4_K", "Q5_K")
    rows = x.reshape(-1, BLOCKS[kind_of(name)].numbers // part, part)
    low = rows.amin(2, keepdim=True).clamp(max=0) if least else torch.zeros(())
    bottom, top = (0, 2 ** bits - 1) if least else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    full = (rows - low).abs().amax(2, keepdim=True).clamp(min=1e-30) / top
    tried = [full * search for search in searches]
    errors = [((((rows - low) / scale).round().clamp(bottom, top) * scale + low - rows) ** 2 * rows ** 2).sum(2)
              for scale in tried]
    best = torch.stack(errors).argmin(0)[..., None]
    scale = steps_of(torch.stack(tried).gather(0, best[None])[0], most).clamp(min=1e-30)
    low = -steps_of(-low, most) if least else low
    return (((rows - low) / scale).round().clamp(bottom, top) * scale + low).view_as(x)


def numbers(heavy):
    """A model's tensors; heavy: with tails as trained matrices have them, and outliers."""
    torch.manual_seed(3)
    tensors = {name: tensor.read().clone() for name, tensor in from_model(model_of(CONFIG)).tensors.items()}
    for tensor in tensors.values():
        if heavy and tensor.dim() == 2:
            tensor.mul_(torch.randn(len(tensor), 1).exp()).view(-1)[::997] *= 8
    return tensors


def told(name, searches, heavy, change=lambda tensors: None):
    right = numbers(heavy)
    wrong = {key: quantized(x, name, searches) if x.dim() == 2 else x.clone() for key, x in right.items()}
    change(wrong)
    block = BLOCKS[kind_of(name)]
    sides = [replace(from_model(model_of(CONFIG)), tensors={
        key: Stored(tuple(x.shape), x.dtype, lambda x=x: x, block=kind if x.dim() == 2 else None)
        for key, x in tensors.items()}) for tensors, kind in ((wrong, block), (right, None))]
    return compare_checkpoints(*sides)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_a_quantized_file_is_told_by_its_type_and_harmless(name, heavy):
    for searches in ((1.0,), (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)):
        result = told(name, searches, heavy)
        assert result.harmless and set(result.found) == {f"differs by quantization to {name} alone"}, str(result)


MISTAKES = {
    "one weight": (lambda t: t[W1].view(-1).__setitem__(700, 9.0), "row 2, column 188: 9 here"),
    "scaled": (lambda t: t[W1].mul_(1.2), r"times 1\.2|\* 1\.2|1\.2"),
    "two rows swapped": (lambda t: t[W1].copy_(t[W1][[1, 0, *range(2, 512)]]), "row"),
    "transposed": (lambda t: t[WQ].copy_(t[WQ].T.clone()), "transposed"),
    "another layer's": (lambda t: t[W1].copy_(t["layers.0.feed_forward.w1.weight"]), "layers.0.feed_forward.w1")}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0"])
def test_a_mistake_in_a_quantized_file_is_named(name, mistake):
    change, words = MISTAKES[mistake]
    result = told(name, (0.9, 1.0), False, change)
    said = [text for text, names in result.found.items() if names != [] and "alone" not in text]
    assert not result.harmless and len(said) == 1
    assert re.search(words, str(result)), str(result)


MUTANTS = [
    Mutant("minillama.parity.checkpoint_diff", 'f"{said} alone", not wrong', 'f"{said} alone", True',
           lambda: test_a_mistake_in_a_quantized_file_is_named("Q6_K", "one weight")),
    Mutant("minillama.parity.checkpoint_diff", "if blocks and (found", "if not blocks and (found",
           lambda: test_a_quantized_file_is_told_by_its_type_and_harmless("Q4_K", False)),
]
