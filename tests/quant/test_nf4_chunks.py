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
    weight, whole = normal(n), nf4.DECODE_CHUNK
    once = quantize_nf4(weight, block_size)
    expected = once.dequantize()
    try:
        nf4.DECODE_CHUNK = 128
        for field in ("codes", "absmax", "absmax_scale", "absmax_offset"):
            assert torch.equal(getattr(quantize_nf4(weight, block_size), field), getattr(once, field))
        assert torch.equal(once.dequantize(), expected)
    finally:
        nf4.DECODE_CHUNK = whole
    slowly = [NF4_LEVELS[code] for byte in once.codes.tolist() for code in (byte >> 4, byte & 15)][:n]
    scales = quantize_nf4(weight, block_size, double_quantization=False).absmax
    plain = quantize_nf4(weight, block_size, double_quantization=False).dequantize()
    assert torch.equal(plain, torch.tensor(slowly) * scales.repeat_interleave(block_size)[:n])


def several_chunks():
    for block_size in (6, 64):
        test_the_size_of_the_chunks_worked_on_does_not_show(389, block_size)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 38), (24, 64), (300, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_by_pieces_of_rows_are_those_of_the_whole_matrix(shape, dtype):
    """fp32: sums of at most 1,000 terms of size 1 in another order. bf16: the same products, rounded at the end."""
    stored, whole = quantize_nf4(normal(*shape)), nf4.DECODE_CHUNK
    x, dy = normal(2, 3, shape[1], seed=1).to(dtype), normal(2, 3, shape[0], seed=2).to(dtype)
    weight = stored.dequantize(dtype).double()
    step = 2e-4 if dtype == torch.float32 else 2**-8 * 120
    try:
        for nf4.DECODE_CHUNK in (8, 512, whole):  # 8 of them to a product
            assert (stored.product(x).double() - x.double() @ weight.T).abs().max() <= step
            assert (stored.product_backward(dy).double() - dy.double() @ weight).abs().max() <= step / 2
    finally:
        nf4.DECODE_CHUNK = whole
    assert stored.product(x[:0]).shape == (0, 3, shape[0]) and stored.product(x).dtype == dtype


def test_a_product_has_four_megabytes_of_rows_in_memory_at_most():
    stored = quantize_nf4(normal(1100, 1000))
    pieces = [(first, len(rows)) for first, rows in nf4.dequantize_in_rows(stored, torch.float32)]
    assert pieces == [(0, 1048), (1048, 52)]  # whole rows, in multiples of 8, which end where a block of 64 does


def by_rows(dtype=torch.float32):
    return lambda: test_products_by_pieces_of_rows_are_those_of_the_whole_matrix((300, 1000), dtype)


NF4 = "minillama.quant.nf4"
MUTANTS = [
    Mutant(NF4, "yield begin // columns,", "yield 0,", by_rows()),
    Mutant(NF4, "dx.addmm_(flat[:, first:first + len(rows)], rows.to(wide))",
           "dx = flat[:, :len(rows)] @ rows.to(wide)",
           by_rows()),
    Mutant(NF4, "step = block // math.gcd(columns, block)", "step = 1", by_rows()),
    Mutant(NF4, "max(1, CHUNKS_PER_MATMUL * DECODE_CHUNK // (step * columns))", "CHUNKS_PER_MATMUL * DECODE_CHUNK",
           test_a_product_has_four_megabytes_of_rows_in_memory_at_most),
    Mutant(NF4, "(begin + size + 1) // 2", "(begin + size) // 2 - 1", several_chunks),
    Mutant(NF4, "absmax[begin // block:]", "absmax[0:]", several_chunks),
    Mutant(NF4, "levels[whole * block:] *= scales[-1]", "levels[whole * block:] *= scales[0]", several_chunks),
    Mutant(NF4, "block_size * max(1, DECODE_CHUNK // block_size)", "DECODE_CHUNK", several_chunks),
]
