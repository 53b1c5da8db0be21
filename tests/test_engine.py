"""The engine's products with a few rows: every form of a weight means what its layer means, within what fp32 allows."""

import math

import pytest
import torch
from torch import nn

from minillama import kernels
from minillama.engine import matrix_of
from minillama.quant.int8 import Int8Linear, quantize_rows
from minillama.quant.nf4 import NF4Linear

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
SHAPES = [(1, 1), (7, 24), (5, 3), (3, 6), (2, 130), (9, 257), (65, 64), (4, 1031)]  # (rows, columns)


def linear_of(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight
    return layer.requires_grad_(False)


def law(y, x, weight):
    """|error| <= gamma_K sum |w| |x| with gamma_K = K u / (1 - K u), u = 2^-24: of K products summed in any order, each
    rounded (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1)."""
    K, unit = weight.shape[1], 2.0**-24
    x, weight = x.double(), weight.double()
    bound = K * unit / (1 - K * unit) * (x.abs() @ weight.abs().T) + 1e-40
    assert y.dtype == torch.float32 and y.shape == bound.shape
    assert bool(((y.double() - x @ weight.T).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_plain_numbers_are_within_the_bound_of_a_sum(dtype, vectors):
    torch.manual_seed(0)
    for rows, columns in SHAPES:
        weight = torch.randn(rows, columns).to(dtype)
        for n in range(1, 9):
            x = torch.randn(n, columns)
            law(matrix_of(linear_of(weight)).product(x), x, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_number_is_read_as_it_is(dtype, vectors):
    """All 65536 bit patterns, infinities and NaN among them, in a column of their own; x is 1."""
    weight = torch.arange(-2**15, 2**15, dtype=torch.int16).view(dtype).view(-1, 1)
    beside_zeros = torch.zeros(len(weight), 40, dtype=dtype)
    beside_zeros[:, 17:18] = weight  # where vectors read
    for matrix in (weight, beside_zeros):
        y = matrix_of(linear_of(matrix)).product(torch.ones(1, matrix.shape[1]))
        assert torch.equal(y[0].nan_to_num(7.25), weight[:, 0].float().nan_to_num(7.25))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block_size", [2, 64, 96])
def test_nf4_products_are_those_of_the_dequantized_weight(block_size, double, vectors):
    torch.manual_seed(1)
    for rows, columns in [*SHAPES, (40, 63)]:
        layer = NF4Linear.from_weight(torch.randn(rows, columns), block_size, double)
        for n in (1, 3, 4, 5, 8):
            x = torch.randn(n, columns)
            law(matrix_of(layer).product(x), x, layer.dequantize())


@pytest.mark.parametrize("threshold", [6.0, math.inf])
def test_int8_products_follow_the_rules_of_llm_int8(threshold, vectors):
    """Integer sums are exact, so all but the sums over outliers, and the last addition, has the reference's bits."""
    torch.manual_seed(2)
    for rows, columns in SHAPES:
        layer = Int8Linear.from_weight(torch.randn(rows, columns), threshold)
        for n in range(1, 9):
            x = torch.randn(n, columns)
            x[:, ::5] *= 4  # some columns reach the threshold, in some rows
            x[0, :1] = 6.0
            y, reference = matrix_of(layer).product(x), layer(x)
            outliers = quantize_rows(x, threshold)[2]
            if len(outliers) == 0:
                assert torch.equal(y, reference)
            apart = x[:, outliers].abs() @ layer.dequantize()[:, outliers].abs().T
            bound = 2.0**-23 * (len(outliers) + 2) * (apart + reference.abs())
            assert bool(((y - reference).abs() <= bound).all())


def test_zeros_and_numbers_that_are_none_pass_through_int8(vectors):
    layer = Int8Linear.from_weight(torch.randn(5, 33))
    x = torch.zeros(4, 33)
    x[1, 3], x[2, 4], x[3, 5] = math.nan, math.inf, 1e-20
    y, reference = matrix_of(layer).product(x), layer(x)
    assert torch.equal(y.isnan(), reference.isnan()) and y[1].isnan().all()
    assert torch.equal(y.nan_to_num(1.5), reference.nan_to_num(1.5))


def test_the_number_of_threads_changes_no_bit(vectors):
    torch.manual_seed(3)
    layers = [linear_of(torch.randn(700, 300)), linear_of(torch.randn(700, 300).bfloat16()),
              NF4Linear.from_weight(torch.randn(700, 300)), Int8Linear.from_weight(torch.randn(700, 300))]
    x, before = torch.randn(5, 300), torch.get_num_threads()
    products = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        products.append([matrix_of(layer).product(x) for layer in layers])
    torch.set_num_threads(before)
    assert all(map(torch.equal, *products))


def test_a_row_has_the_bits_beside_others_that_it_has_alone(vectors):
    torch.manual_seed(4)
    for rows, columns in [*SHAPES, (9, 320)]:
        weight, x = torch.randn(rows, columns), torch.randn(8, columns)
        layers = [linear_of(weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
        for matrix in map(matrix_of, [*layers, NF4Linear.from_weight(weight)]):
            alone = torch.cat([matrix.product(x[m:m + 1].contiguous()) for m in range(8)])
            assert all(torch.equal(matrix.product(x[:n]), alone[:n]) for n in range(1, 9))


def test_a_matrix_reads_the_layers_own_memory():
    layer = linear_of(torch.zeros(3, 4))
    matrix = matrix_of(layer)
    layer.weight.data.fill_(2.0)
    assert torch.equal(matrix.product(torch.ones(1, 4)), torch.full((1, 3), 8.0))


def test_layers_and_rows_that_it_does_not_know_are_refused():
    with pytest.raises(ValueError, match="the engine has no product for Linear"):
        matrix_of(nn.Linear(3, 4))
    with pytest.raises(RuntimeError, match=r"x has shape \[9, 4\], wanted 1 to 8 contiguous rows of 4"):
        matrix_of(linear_of(torch.zeros(3, 4))).product(torch.zeros(9, 4))
    with pytest.raises(RuntimeError, match="dtype Double"):
        matrix_of(linear_of(torch.zeros(3, 4, dtype=torch.double)))
    with pytest.raises(RuntimeError, match="not contiguous"):
        matrix_of(linear_of(torch.zeros(4, 3).T))
