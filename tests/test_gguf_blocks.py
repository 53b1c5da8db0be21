"""GGUF's tensor types: decoded and encoded bit for bit as llama.cpp's own Python package does it."""

import numpy as np
import pytest
import torch
from mutants import Mutant

from minillama.checkpoint.gguf_blocks import BLOCKS


def package():
    return pytest.importorskip("gguf", reason="the oracle: pip install -r tests/oracles.txt")


def kind_of(name):
    return next(number for number, block in BLOCKS.items() if block.name == name)


def numbers(count, seed=0):
    """Normal numbers, with blocks of zeros, of one outlier and of halves that rounding could take either way."""
    x = np.random.default_rng(seed).standard_normal((count // 32, 32)).astype(np.float32)
    x[0], x[1, 5], x[2] = 0, 1000, np.arange(32) / 2
    x[2, 0] = 127
    return x


def test_blocks_are_decoded_as_llama_cpp_decodes_them():
    kinds = package().GGMLQuantizationType
    for name in ("Q8_0", "Q4_0", "Q4_1", "BF16", "F16"):
        for count in (96, 32 * 31):
            raw = package().quants.quantize(numbers(count), kinds[name])
            wanted = package().quants.dequantize(raw, kinds[name]).flatten()
            found = BLOCKS[kind_of(name)].decode(torch.from_numpy(raw.view(np.uint8).flatten().copy()))
            assert np.array_equal(found.float().numpy(), wanted), name


def test_blocks_are_written_as_llama_cpp_writes_them():
    for name in ("Q8_0", "BF16", "F16", "F32"):
        x = numbers(32 * 31, seed=1)
        wanted = package().quants.quantize(x, package().GGMLQuantizationType[name]).view(np.uint8).flatten()
        assert np.array_equal(BLOCKS[kind_of(name)].encode(torch.from_numpy(x)).numpy(), wanted), name


MODULE = "minillama.checkpoint.gguf_blocks"
DECODING = test_blocks_are_decoded_as_llama_cpp_decodes_them
MUTANTS = [
    Mutant(MODULE, "torch.cat([raw & 15, raw >> 4], dim=1)", "torch.stack([raw & 15, raw >> 4], 2).flatten(1)",
           DECODING),
    Mutant(MODULE, "_nibbles(blocks[:, 2:]) - 8", "_nibbles(blocks[:, 2:]) - 7", DECODING),
    Mutant(MODULE, "(scaled.sign() * (scaled.abs() + 0.5).floor())", "scaled.round()",
           test_blocks_are_written_as_llama_cpp_writes_them),
]
