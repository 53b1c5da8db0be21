"""LLM.int8: codes equal to bitsandbytes', the outlier split, gradients to x alone."""

import math

import pytest
import torch
from mutants import Mutant
from oracles_quant import int8_rows
from torch import nn

from minillama.quant.int8 import Int8Linear, Int8Tensor, quantize_int8, quantize_rows

SHAPES = [(1, 1), (1, 7), (5, 1), (3, 5), (17, 64), (64, 129)]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_outliers(*shape, seed=0, dtype=torch.float32):
    """Standard normal, with one column twenty times as large: most of it is of size 6 and more."""
    rows = normal(*shape, seed=seed)
    rows[:, shape[1] // 2] *= 20
    return rows.to(dtype)


@pytest.mark.parametrize("threshold", [math.inf, 6.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_equal_the_loop(shape, threshold):
    rows = with_outliers(*shape)
    codes, absmax, columns = quantize_rows(rows, threshold)
    wanted, scales, wanted_columns = int8_rows(rows.tolist(), threshold)
    assert codes.tolist() == wanted
    assert absmax.tolist() == [float(scale) for scale in scales]
    assert columns.tolist() == wanted_columns


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (17, 64), (64, 129), (256, 512)], ids=str)
def test_codes_equal_bitsandbytes(shape, dtype, threshold):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the oracle of the codes")
    rows = with_outliers(*shape, dtype=dtype)
    theirs, scales, theirs_columns = functional.int8_vectorwise_quant(rows.clone(), threshold=threshold)
    codes, absmax, columns = quantize_rows(rows, threshold or math.inf)
    assert torch.equal(codes, theirs) and torch.equal(absmax, scales)
    assert columns.tolist() == ([] if theirs_columns is None else theirs_columns.tolist())


def test_ties_go_to_the_even_code():
    rows = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]])
    assert quantize_rows(rows)[0].tolist() == [[127, 0, 2, 2, 0, -2, 126]]


def test_values_near_the_half_way_points_round_as_the_loop_and_bitsandbytes_do():
    """Within two fp32 steps of (k + 1/2) absmax / 127, where multiplying and dividing part."""
    generator = torch.Generator().manual_seed(0)
    absmax = torch.rand(20, 1, generator=generator) + 0.5
    rows = absmax * (torch.randint(0, 126, (20, 64), generator=generator) + 0.5) / 127
    rows = (rows.view(torch.int32) + torch.randint(-2, 3, rows.shape, generator=generator, dtype=torch.int32))
    rows = rows.view(torch.float32)
    rows[:, 5] = absmax[:, 0]
    assert quantize_rows(rows)[0].tolist() == int8_rows(rows.tolist())[0]
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the oracle of the codes")
    assert torch.equal(quantize_rows(rows)[0], functional.int8_vectorwise_quant(rows.clone())[0])


def test_a_row_of_zeros_stays_zero():
    rows = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    assert quantize_rows(rows)[0].tolist() == [[0, 0], [64, -127]]
    assert not quantize_int8(torch.zeros(3, 4)).dequantize().any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_error_is_at_most_half_a_step(shape):
    weight = normal(*shape)
    stored = quantize_int8(weight)
    half_step = stored.absmax[:, None] / 127 / 2
    assert bool(((stored.dequantize() - weight).abs() <= half_step * (1 + 1e-4)).all())


@pytest.mark.parametrize(("threshold", "scale"), [(math.inf, 1.0), (6.0, 1.0), (6.0, 20.0)])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (3, 5), (24, 40), (7, 2048)])
def test_forward_is_the_product_of_the_codes_plus_the_outlier_columns(out_features, in_features, threshold, scale):
    """Against float64; relative 1e-5 of the largest sum: fp32 scaling, and fp32 products of the outlier
    columns."""
    linear = Int8Linear.from_weight(normal(out_features, in_features), threshold=threshold)
    x = normal(2, 3, in_features, seed=1)
    x[..., in_features // 2] *= scale
    codes, absmax, columns = int8_rows(x.view(6, -1).tolist(), threshold)
    weight = linear.dequantize().double()
    rows = torch.tensor(codes).double() * torch.tensor([float(a) for a in absmax]).double()[:, None] / 127
    wanted = rows @ weight.T + x.view(6, -1)[:, columns].double() @ weight[:, columns].T
    assert linear(x).shape == (2, 3, out_features)
    assert torch.allclose(linear(x).double().view(6, -1), wanted, atol=1e-5 * float(wanted.abs().max()))


def test_sums_of_codes_are_exact_beyond_the_24_bits_of_fp32():
    """20,000 products of one sign add up to about 10^8; summed as int64 they are rounded once, at the end."""
    weight, x = 2 + normal(50, 20000) / 3, 2 + normal(20, 20000, seed=1) / 3
    stored = quantize_int8(weight)
    codes, absmax, _ = quantize_rows(x)
    sums = (codes.long() @ stored.codes.long().T).float()
    assert torch.equal(stored.product(x), sums * (absmax / 127)[:, None] * (stored.absmax / 127))


def test_the_split_takes_the_cost_of_one_large_column_down_more_than_tenfold():
    """Mean squared error that rounding x adds, against x times the same int8 weights: measured 35 times
    less."""
    x, stored = with_outliers(32, 256, seed=1), quantize_int8(normal(64, 256))
    exact = x.double() @ stored.dequantize().double().T
    whole, split = (Int8Linear(Int8Tensor(stored.codes, stored.absmax, threshold))(x).double() - exact
                    for threshold in (math.inf, 6.0))
    assert float(whole.pow(2).mean()) > 10 * float(split.pow(2).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_is_dy_times_the_dequantized_weight(dtype):
    linear = Int8Linear.from_weight(normal(24, 40))
    x = with_outliers(6, 40, dtype=dtype).view(2, 3, 40).requires_grad_()
    dy = normal(2, 3, 24, seed=2, dtype=dtype)
    y = linear(x)
    y.backward(dy)
    assert y.dtype == x.grad.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.2, torch.float16: 0.03}[dtype]  # ~ 24 rounded terms of ~5
    assert torch.allclose(x.grad.double(), dy.double() @ linear.dequantize().double(), atol=tolerance)


def test_nothing_of_the_weights_size_is_saved_for_the_backward_pass():
    linear, saved = Int8Linear.from_weight(normal(24, 40)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        linear(normal(3, 40).requires_grad_())
    assert sum(saved) < 24 * 40
    assert not list(linear.parameters())


def test_nan_and_infinity_in_x_stay_visible():
    linear = Int8Linear.from_weight(normal(4, 8))
    x = normal(3, 8)
    x[0, 2], x[1, 2] = math.nan, math.inf
    y = linear(x)
    assert bool(y[0].isnan().all()) and not bool(y[1].isfinite().any())
    assert bool(y[2].isfinite().all())


def test_casting_and_state_dict_keep_the_bits():
    first, second = Int8Linear.from_weight(normal(3, 5)), Int8Linear.from_weight(normal(3, 5, seed=1))
    wanted = first.dequantize()
    second.load_state_dict(first.bfloat16().state_dict())
    assert torch.equal(second.dequantize(), wanted)
    with pytest.raises(RuntimeError, match="layout"):
        Int8Linear.from_weight(normal(5, 3)).load_state_dict(first.state_dict())


def test_what_cannot_be_quantized_is_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN"):
            quantize_int8(torch.tensor([[1.0, bad]]))
    for shape in ((3,), (0, 3), (2, 2, 2)):
        with pytest.raises(ValueError, match="matrix"):
            quantize_int8(torch.ones(shape))
    with pytest.raises(TypeError, match="int64"):
        quantize_int8(torch.ones(2, 2, dtype=torch.int64))
    for threshold in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            quantize_int8(torch.ones(2, 2), threshold)
    with pytest.raises(ValueError, match="bias"):
        Int8Linear.from_linear(nn.Linear(2, 2))


INT8 = "minillama.quant.int8"


def the_loop():
    test_codes_equal_the_loop((17, 64), 6.0)


def forward():
    test_forward_is_the_product_of_the_codes_plus_the_outlier_columns(24, 40, 6.0, 20.0)


MUTANTS = [
    Mutant(INT8, "127.0 * absmax", "128.0 * absmax", the_loop),
    Mutant(INT8, "inside * (127.0 * absmax.reciprocal())[:, None]", "inside / (absmax / 127.0)[:, None]",
           test_values_near_the_half_way_points_round_as_the_loop_and_bitsandbytes_do),
    Mutant(INT8, "(127.0 * absmax.reciprocal())", "(torch.full_like(absmax, 127) / absmax)",
           test_values_near_the_half_way_points_round_as_the_loop_and_bitsandbytes_do),
    Mutant(INT8, "rows.abs() >= threshold", "rows >= threshold", the_loop),
    Mutant(INT8, "rows.abs() >= threshold", "rows.abs() > 1.5 * threshold", the_loop),
    Mutant(INT8, "outlier.any(0)", "outlier.all(0)", the_loop),
    Mutant(INT8, ".masked_fill(outlier, 0)\n    absmax", "\n    absmax", the_loop),
    Mutant(INT8, "codes = codes.masked_fill(columns, 0)", "", the_loop),
    Mutant(INT8, "torch.round(inside", "torch.trunc(inside", the_loop),
    Mutant(INT8, "torch.round(inside * (127.0 * absmax.reciprocal())[:, None])",
           "torch.floor(inside * (127.0 * absmax.reciprocal())[:, None] + 0.5)", test_ties_go_to_the_even_code),
    Mutant(INT8, "codes = codes.masked_fill(columns, 0)", "columns = ~columns", the_loop),
    Mutant(INT8, "self.codes.double().T", "self.codes.double().T.float().double() * 0.999", forward),
    Mutant(INT8, "codes.double() @ self.codes.double().T", "(codes.half() @ self.codes.half().T).double()",
           lambda: test_forward_is_the_product_of_the_codes_plus_the_outlier_columns(7, 2048, 6.0, 1.0)),
    Mutant(INT8, "codes.double() @ self.codes.double().T", "codes.float() @ self.codes.float().T",
           test_sums_of_codes_are_exact_beyond_the_24_bits_of_fp32),
    Mutant(INT8, "* (absmax / 127)[:, None] * (self.absmax / 127)", "* (absmax / 127)[:, None]", forward),
    Mutant(INT8, "y = y + (rows[:, columns] @ kept.T).float()", "", forward),
    Mutant(INT8, "quantize_rows(rows, self.threshold)", "quantize_rows(rows)",
           test_the_split_takes_the_cost_of_one_large_column_down_more_than_tenfold),
    Mutant("minillama.quant.quantized_linear", "FrozenProduct.apply(x, self.packed_weight())",
           "self.packed_weight().product(x)",
           lambda: test_gradient_is_dy_times_the_dequantized_weight(torch.float32)),
    Mutant("minillama.quant.quantized_linear", "ctx.stored = stored",
           "ctx.stored = stored\n        ctx.save_for_backward(stored.dequantize(x.dtype))",
           test_nothing_of_the_weights_size_is_saved_for_the_backward_pass),
]
