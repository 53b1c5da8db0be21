"""GGUF's tensor types: decoded and encoded bit for bit as llama.cpp's own Python package does it."""

import numpy as np
import pytest
import torch
from mutants import Mutant

from minillama.checkpoint.gguf_blocks import BLOCKS, UNREAD


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


HALVES = {"Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
          "Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0]}  # where a block holds a number of 16 bits: all else may be any byte


def any_blocks(name, count, seed):
    """(count, bytes of a block) random bytes; its numbers in fp16 are finite, with zeros and both signs among them."""
    source = np.random.default_rng(seed)
    raw = source.integers(0, 256, (count, BLOCKS[kind_of(name)].bytes), dtype=np.uint8)
    for place in HALVES[name]:
        scales = source.standard_normal(count).astype(np.float16)
        scales[::7] = 0
        raw[:, place:place + 2] = scales[:, None].view(np.uint8)
    return raw


@pytest.mark.parametrize("name", HALVES)
def test_any_bytes_are_decoded_to_the_bits_that_llama_cpp_gives(name):
    for count in (1, 3, 97, 2**12 + 1):
        raw = any_blocks(name, count, count)
        wanted = package().quants.dequantize(raw, package().GGMLQuantizationType[name]).flatten()
        found = BLOCKS[kind_of(name)].decode(torch.from_numpy(raw).flatten()).numpy()
        assert found.dtype == np.float32 and np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_every_type_has_the_number_the_name_and_the_size_that_llama_cpp_gives_it():
    kinds, sizes = package().GGMLQuantizationType, package().GGML_QUANT_SIZES
    assert not BLOCKS.keys() & UNREAD.keys() and {kind.value for kind in kinds} <= BLOCKS.keys() | UNREAD.keys()
    for kind in kinds:
        if kind in BLOCKS:
            block = BLOCKS[kind]
            assert (block.name, block.numbers, block.bytes) == (kind.name, *sizes[kind])
        else:
            assert UNREAD[kind] == kind.name


def test_blocks_are_written_as_llama_cpp_writes_them():
    for name in ("Q8_0", "BF16", "F16", "F32"):
        x = numbers(32 * 31, seed=1)
        wanted = package().quants.quantize(x, package().GGMLQuantizationType[name]).view(np.uint8).flatten()
        assert np.array_equal(BLOCKS[kind_of(name)].encode(torch.from_numpy(x)).numpy(), wanted), name


MODULE = "minillama.checkpoint.gguf_blocks"
DECODING = test_blocks_are_decoded_as_llama_cpp_decodes_them


def decoding(name):
    return lambda: test_any_bytes_are_decoded_to_the_bits_that_llama_cpp_gives(name)


MUTANTS = [
    Mutant(MODULE, "raw.reshape(len(raw), -1, 1, run) >> shifts",
           "raw.reshape(len(raw), 1, -1, run) >> shifts[:, None]", decoding("Q2_K")),
    Mutant(MODULE, "(16 if has_fifth else 8)", "(16 if has_fifth else 7)", DECODING),
    Mutant(MODULE, "(_fields(fifth, 1, 1) << 4)", "(_fields(fifth, 1, 4) << 4)",
           decoding("Q5_0")),
    Mutant(MODULE, "_half(d) * (scales & 15).float(), _half(e) * (scales >> 4)",
           "_half(d) * (scales >> 4).float(), _half(e) * (scales & 15)", decoding("Q2_K")),
    Mutant(MODULE, "_fields(high, 2, 4)", "_fields(high, 2, 1)", decoding("Q3_K")),
    Mutant(MODULE, "_fields(third, 1, 32)", "(1 - _fields(third, 1, 32))", decoding("Q3_K")),
    Mutant(MODULE, "(first >> 6 << 4)", "(second >> 6 << 4)", decoding("Q4_K")),
    Mutant(MODULE, "(halves >> 4) |", "(halves & 15) |", decoding("Q4_K")),
    Mutant(MODULE, "parts - least[..., None]", "parts + least[..., None]", decoding("Q4_K")),
    Mutant(MODULE, "(_fields(fifth, 1, 32) << 4)", "(_fields(fifth, 1, 4) << 4)", decoding("Q5_K")),
    Mutant(MODULE, "_fields(low, 4, 64)", "_fields(low, 4, 32)", decoding("Q6_K")),
    Mutant(MODULE, "scales.contiguous().view(torch.int8).float()", "scales.float()", decoding("Q6_K")),
    Mutant(MODULE, "(scaled.sign() * (scaled.abs() + 0.5).floor())", "scaled.round()",
           test_blocks_are_written_as_llama_cpp_writes_them),
]
