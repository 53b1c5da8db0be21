"""NF4 products of up to 16 rows on a CPU: all kinds of vectors read the same weights, once."""

import math

import pytest
import torch

from minillama import kernels
from minillama.parity.rounding import gamma
from minillama.quant.nf4 import NF4Tensor, quantize_nf4

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
SHAPES = [(1, 64), (13, 64), (12, 192), (17, 576), (3, 1088), (50, 128), (5, 2112)]  # (N, K): whole blocks in a row
ROWS = (1, 2, 3, 4, 5, 7, 8, 16, 17)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def law(y, x, weight):
    """|error| <= gamma(K + 2) sum |w| |x|: K products in fp32, summed in any order; where absmax is multiplied, a
    weight or a block's sum is rounded once more."""
    x, weight = x.double(), weight.double()
    bound = gamma(weight.shape[1] + 2) * (x.abs() @ weight.abs().T)
    assert y.shape == bound.shape
    assert bool(((y.double() - x @ weight.T).abs() <= bound).all())


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block_size", [64, 192, 4096])
def test_products_are_within_the_bound_of_a_sum(block_size, double, vectors):
    """Blocks of 192 and 4096 cross rows of W; of 4096 most rows have none that is whole."""
    for N, K in SHAPES:
        stored = quantize_nf4(normal(N, K), block_size, double)
        for M in ROWS:
            x = normal(M, K, seed=1)
            law(kernels.nf4_matmul(x, stored), x, stored.dequantize())


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block_size", [64, 192])
def test_each_weight_is_read_where_it_lies(block_size, double, vectors):
    """One number 1 among zeros gives a column of W bit for bit: 5 rows of 15 or 30 blocks, several groups of scales."""
    stored = quantize_nf4(normal(130, 960) * torch.linspace(0.5, 2, 130)[:, None], block_size, double)
    weight, unit = stored.dequantize(), torch.eye(960)
    for first in range(0, 960, 16):
        assert torch.equal(kernels.nf4_matmul(unit[first:first + 16], stored), weight[:, first:first + 16].T)


def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(vectors):
    """Of 1 to 4 rows by the general loops, of 1 to 16 where each kind of vectors has its own."""
    stored, most = quantize_nf4(normal(29, 576)), 4 if vectors == "plain" else 16
    x = normal(most, 576, seed=1)
    alone = torch.cat([kernels.nf4_matmul(row[None], stored) for row in x])
    for M in range(1, most + 1):
        assert torch.equal(kernels.nf4_matmul(x[:M], stored), alone[:M])


def test_neither_threads_nor_where_tensors_begin_change_a_bit(vectors):
    stored = quantize_nf4(normal(500, 192))
    x, threads = normal(3, 192, seed=1), torch.get_num_threads()
    wanted = kernels.nf4_matmul(x, stored)

    def moved(tensor):
        return torch.cat([tensor[:1], tensor])[1:]

    elsewhere = NF4Tensor(moved(stored.codes), moved(stored.absmax), moved(stored.absmax_scale), stored.absmax_offset,
                          stored.shape)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(kernels.nf4_matmul(x, elsewhere), wanted)
            assert torch.equal(kernels.nf4_matmul(torch.cat([x[:1], x])[1:], stored), wanted)
    finally:
        torch.set_num_threads(threads)


def test_infinity_and_nan_reach_every_result_of_their_row_and_no_other(vectors):
    stored = quantize_nf4(normal(20, 192))
    x = normal(4, 192, seed=1)
    x[1, 5], x[2, 191] = math.inf, math.nan
    y, weight = kernels.nf4_matmul(x, stored), stored.dequantize()
    assert torch.isfinite(y[[0, 3]]).all() and y[2].isnan().all()
    assert torch.equal(y[1].nan_to_num(1.5), (weight[:, 5] * math.inf).nan_to_num(1.5))  # a weight 0 makes NaN of it


def test_a_sum_that_only_its_scale_makes_small_enough_keeps_the_bound(vectors):
    """64 numbers up to 3e38 times levels up to 1 overflow; times 1e-3 as well they do not. One and several chunks of
    columns, and rows in one group and in two."""
    for N, K in [(1, 64), (13, 192), (5, 320)]:
        stored = quantize_nf4(1e-3 * (0.5 + 0.5 * torch.rand(N, K, generator=torch.Generator().manual_seed(0))))
        for M in (1, 2, 6):
            x = 3e38 * (0.5 + 0.5 * torch.rand(M, K, generator=torch.Generator().manual_seed(1)))
            law(kernels.nf4_matmul(x, stored), x, stored.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_numbers_are_summed_in_fp32_and_rounded_once(dtype, vectors):
    stored = quantize_nf4(normal(33, 320))
    x = normal(2, 320, seed=1).to(dtype)
    wide = kernels.nf4_matmul(x.float(), stored)
    assert torch.equal(kernels.nf4_matmul(x, stored), wide.to(dtype))


def test_a_block_of_zeros_and_the_smallest_numbers_keep_the_bound(vectors):
    weight = normal(6, 256)
    weight[2, 64:128] = 0
    weight[3] *= 1e-30
    stored = quantize_nf4(weight, double_quantization=False)
    x = normal(2, 256, seed=1)
    y = kernels.nf4_matmul(x, stored)
    law(y, x, stored.dequantize())
    assert bool((y[:, 3].abs() < 1e-27).all())
