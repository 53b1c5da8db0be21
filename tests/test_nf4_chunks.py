"""NF4 is worked on in pieces: their size must not show in a single bit."""

import pytest
import torch
from mutants import Mutant
from test_nf4 import normal

from minillama.quant import nf4
from minillama.quant.nf4 import NF4_LEVELS, quantize_nf4


@pytest.mark.parametrize("block_size", [2, 6, 64, 130])
@pytest.mark.parametrize("n", [1, 63, 64, 129, 389, 1000])
def test_the_size_of_the_chunks_worked_on_does_not_show(n, block_size):
    weight, whole = normal(n), nf4.CHUNK
    once = quantize_nf4(weight, block_size)
    expected = once.dequantize()
    try:
        nf4.CHUNK = 128
        for field in ("codes", "absmax", "absmax_scale", "absmax_offset"):
            assert torch.equal(getattr(quantize_nf4(weight, block_size), field), getattr(once, field))
        assert torch.equal(once.dequantize(), expected)
    finally:
        nf4.CHUNK = whole
    slowly = [NF4_LEVELS[code] for byte in once.codes.tolist() for code in (byte >> 4, byte & 15)][:n]
    scales = quantize_nf4(weight, block_size, double_quantization=False).absmax
    plain = quantize_nf4(weight, block_size, double_quantization=False).dequantize()
    assert torch.equal(plain, torch.tensor(slowly) * scales.repeat_interleave(block_size)[:n])


def several_chunks():
    for block_size in (6, 64):
        test_the_size_of_the_chunks_worked_on_does_not_show(389, block_size)


NF4 = "minillama.quant.nf4"
MUTANTS = [
    Mutant(NF4, "(begin + size + 1) // 2", "(begin + size) // 2 - 1", several_chunks),
    Mutant(NF4, "absmax[begin // block:]", "absmax[0:]", several_chunks),
    Mutant(NF4, "levels[whole * block:] *= scales[-1]", "levels[whole * block:] *= scales[0]", several_chunks),
    Mutant(NF4, "block_size * max(1, CHUNK // block_size)", "CHUNK", several_chunks),
]
