"""NF4 from numbers and back on a CPU: byte for byte and bit for bit the reference's."""

import math

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.quant.nf4 import NF4_LEVELS, NF4Linear, NF4Tensor, quantize_nf4

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
SHAPES = [(1,), (2,), (63,), (65,), (3, 43), (5, 7, 11), (40, 1025), (130, 640)]
BLOCKS = (2, 6, 64, 130, 4096)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_parts(a, b):
    return all(x is y or torch.equal(x, y) for x, y in zip(a.parts(), b.parts(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("double", [True, False])
def test_the_bytes_are_the_references(double, dtype, vectors):
    for shape in SHAPES:
        for block_size in BLOCKS:
            weight = normal(*shape).to(dtype)
            assert same_parts(quantize_nf4(weight, block_size, double, backend="cpu"),
                              quantize_nf4(weight, block_size, double))


def test_values_at_and_beside_the_half_way_points_round_as_the_references(vectors):
    """Within two fp32 steps of (a + b) / 2 times absmax, where a product that is rounded otherwise parts."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor(NF4_LEVELS)
    absmax = torch.rand(400, 1, generator=generator) + 0.5
    absmax[:15] = 1  # there the half-way points themselves
    blocks = absmax * ((levels[:-1] + levels[1:]) / 2)[torch.randint(15, (400, 64), generator=generator)]
    steps = torch.randint(-2, 3, blocks.shape, generator=generator, dtype=torch.int32)
    blocks = (blocks.view(torch.int32) + steps).view(torch.float32)
    blocks[:, 5] = absmax[:, 0]
    assert same_parts(quantize_nf4(blocks, backend="cpu"), quantize_nf4(blocks))


def test_zeros_and_the_smallest_and_largest_numbers_too(vectors):
    weight = normal(6, 64)
    weight[0], weight[1], weight[2], weight[3] = 0, 1e-39 * weight[1], 3e38 * weight[2].sign(), -0.0
    assert same_parts(quantize_nf4(weight, double_quantization=False, backend="cpu"),
                      quantize_nf4(weight, double_quantization=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("double", [True, False])
def test_dequantized_bits_are_the_references(double, dtype, vectors):
    for shape in SHAPES:
        for block_size in BLOCKS:
            stored = quantize_nf4(normal(*shape), block_size, double)
            ours = NF4Tensor(*stored.parts(), stored.shape, block_size, "cpu").dequantize(dtype)
            wanted = stored.dequantize(dtype)
            assert ours.dtype == dtype and ours.shape == wanted.shape and torch.equal(ours, wanted)


def test_neither_threads_nor_where_tensors_begin_change_a_bit(vectors):
    weight, threads = normal(200, 333), torch.get_num_threads()
    stored, moved = quantize_nf4(weight), torch.cat([weight.flatten()[:1], weight.flatten()])[1:].view(200, 333)
    parts = [torch.cat([part.flatten()[:1], part.flatten()])[1:] for part in stored.parts()]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same_parts(quantize_nf4(moved, backend="cpu"), stored)
            assert torch.equal(NF4Tensor(*parts, stored.shape, 64, "cpu").dequantize(), stored.dequantize())
            assert same_parts(quantize_nf4(weight.T, backend="cpu"), quantize_nf4(weight.T.contiguous()))
    finally:
        torch.set_num_threads(threads)


def test_fitted_scales_and_layers_take_the_kernels_bytes():
    weight = normal(9, 100)
    assert same_parts(quantize_nf4(weight, fit_scales=True, backend="cpu"), quantize_nf4(weight, fit_scales=True))
    layer = NF4Linear.from_weight(weight, backend="cpu")
    layer.backend = "cpu"
    assert torch.equal(layer.dequantize(), quantize_nf4(weight).dequantize())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_cannot_be_quantized_is_refused(backend):
    for bad in (math.nan, -math.nan, math.inf, -math.inf):
        weight = normal(4, 64)
        weight[2, 3] = bad
        with pytest.raises(ValueError, match=r"a weight of shape \(4, 64\) that is empty or holds NaN or infinity"):
            quantize_nf4(weight, backend=backend)
    with pytest.raises(ValueError, match=r"a weight of shape \(0, 64\) that is empty"):
        quantize_nf4(torch.zeros(0, 64), backend=backend)


def test_wrong_arguments_are_refused_with_the_wanted_and_the_given():
    with pytest.raises(RuntimeError, match="block_size 3 is not allowed: use an even number"):
        torch.ops.minillama.nf4_quantize(torch.zeros(4), 3)
    with pytest.raises(RuntimeError, match="x has dtype Int"):
        torch.ops.minillama.nf4_quantize(torch.zeros(4, dtype=torch.int32), 2)
    codes, absmax, scale, offset = quantize_nf4(normal(5, 8)).parts()
    with pytest.raises(RuntimeError, match="codes holds 20 bytes, wanted 24"):
        torch.ops.minillama.nf4_dequantize(codes, absmax, scale, offset, (6, 8), 64, torch.float32)


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.quant.nf4", '("nf4_quantize", backend, flat)(flat, block_size)',
           '("nf4_quantize", backend, flat)(flat * 1.01, block_size)',
           lambda: test_the_bytes_are_the_references(False, torch.float32, None)),
    Mutant("minillama.quant.nf4", "flat if backend == \"reference\" else absmax", "flat[:1]",
           lambda: test_what_cannot_be_quantized_is_refused("cpu")),
]
