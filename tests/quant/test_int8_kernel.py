"""int8 products of CPUs: the integers are the reference's, and where no column is an outlier so are all bits."""

import math

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.parity.rounding import FP32, gamma
from minillama.quant import int8
from minillama.quant.int8 import Int8Linear, Int8Tensor, int8_matmul, quantize_int8, quantize_rows
from minillama.quant.quantize_linears import quantize_linears
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
SHAPES = [(1, 1), (5, 3), (3, 31), (4, 33), (17, 64), (6, 65), (9, 200), (2, 1030), (70, 68)]  # (out, in)
ROWS = (1, 2, 3, 4, 5, 9, 12, 17)  # from 12 on by tiles of W, where there is VNNI and columns are whole fours


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_outliers_every_bit_is_the_references(dtype, vectors):
    for shape in SHAPES:
        stored = quantize_int8(normal(*shape), math.inf)
        for M in ROWS:
            x = (20 * normal(M, shape[1], seed=1)).to(dtype)
            assert torch.equal(int8_matmul(x, stored), stored.product(x))


@pytest.mark.parametrize("rows", [3, 12])
@pytest.mark.parametrize("columns", [64, 1000, 65536, 131073, 200001])
def test_sums_of_the_largest_codes_do_not_run_over(columns, rows, vectors):
    """-128 is no code of ours, but a file's may be: two products with it fill an int16 of AVX2 to 32512 of 32767; and
    200,001 products of 127 * 128 need 32 bits and their sign."""
    codes = torch.tensor([[127], [-127], [-128], [1]], dtype=torch.int8).repeat(1, columns)
    codes[3, ::2] = -128
    stored = Int8Tensor(codes, torch.full((4,), 127.0), math.inf)
    x = torch.ones(rows, columns)
    x[1], x[2, 1::2] = -1, -1  # codes 127 and -127
    sums = 127 * x.double() @ codes.double().T
    assert torch.equal(int8_matmul(x, stored), sums.float() * (torch.ones(rows) / 127)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_of_outliers_are_multiplied_in_fp32(dtype, vectors):
    """|error| of their sum: gamma(n + 2), a weight being rounded twice; of all, two roundings more and one to dtype."""
    for shape in SHAPES:
        stored = quantize_int8(normal(*shape))
        for M in ROWS:
            x = normal(M, shape[1], seed=1).to(dtype)
            x[:, ::3] *= 5
            x[-1, shape[1] // 2] = 6.0  # the threshold itself is one
            codes, absmax, columns = quantize_rows(x, 6.0)
            sums = (codes.double() @ stored.codes.double().T).float()
            inside = sums * (absmax / 127)[:, None] * (stored.absmax / 127)
            weight = stored.codes[:, columns].double() * (stored.absmax.double() / 127)[:, None]
            exact = inside.double() + x[:, columns].double() @ weight.T
            sizes = x[:, columns].double().abs() @ weight.abs().T
            bound = gamma(len(columns) + 3) * sizes + 2 * FP32 * inside.abs() + torch.finfo(dtype).eps * exact.abs()
            y = int8_matmul(x, stored)
            assert y.dtype == dtype and bool(((y.double() - exact).abs() <= bound + 1e-30).all())


def test_zeros_nan_and_infinity_pass_as_in_the_reference(vectors):
    stored = quantize_int8(normal(5, 70))
    x = normal(6, 70, seed=1)
    x[0], x[1, 3], x[2, 69], x[3] = 0, math.nan, math.inf, 1e-30 * x[3]
    for threshold in (6.0, math.inf):
        given = Int8Tensor(stored.codes, stored.absmax, threshold)
        y, wanted = int8_matmul(x, given), given.product(x)
        assert torch.equal(y.isnan(), wanted.isnan()) and y[1].isnan().all()
        torch.testing.assert_close(y, wanted, rtol=1e-6, atol=0, equal_nan=True)


def test_neither_threads_nor_where_tensors_begin_change_a_bit(vectors):
    stored, x, threads = quantize_int8(normal(100, 333)), normal(5, 333, seed=1) * 3, torch.get_num_threads()
    wanted = int8_matmul(x, stored)
    elsewhere = Int8Tensor(torch.cat([stored.codes.flatten()[:1], stored.codes.flatten()])[1:].view(100, 333),
                           torch.cat([stored.absmax[:1], stored.absmax])[1:])
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(int8_matmul(x, elsewhere), wanted)
    finally:
        torch.set_num_threads(threads)


def test_leading_dimensions_and_strides_do_not_matter(vectors):
    stored = quantize_int8(normal(5, 8))
    x = normal(8, 3, 2, seed=1).permute(2, 1, 0)
    assert torch.equal(int8_matmul(x, stored), int8_matmul(x.reshape(6, 8), stored).view(2, 3, 5))
    assert int8_matmul(torch.zeros(0, 3, 8), stored).shape == (0, 3, 5)
    assert int8_matmul(x[0, 0], stored).shape == (5,)


def test_a_layer_multiplies_by_the_backend_that_it_is_given_and_keeps_its_gradient():
    layer, x = Int8Linear.from_weight(normal(24, 40)), (3 * normal(6, 40, seed=1)).requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x).sum(), x)
    called, real = [], int8.int8_matmul
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "int8_matmul", lambda *a: called.append(a[2]) or real(*a))
        layer.backend = "cpu"
        y = layer(x)
    assert called == ["cpu"]
    torch.testing.assert_close(y, real(x.detach(), layer.packed_weight()), rtol=0, atol=0)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], wanted)


def test_the_operator_passes_pytorchs_own_check():
    stored = quantize_int8(normal(5, 8))
    torch.library.opcheck(torch.ops.minillama.int8_matmul.default, (normal(3, 8), stored.codes, stored.absmax, 6.0),
                          test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", "simt"])
def test_a_model_multiplies_int8_by_the_kernels_asked_for_where_there_are_any(backend):
    model = Transformer(ModelConfig(16, 1, 2, 11, hidden_dim=24, max_seq_len=16))
    quantize_linears(model, kind="int8")
    use_kernels(model, backend)
    assert {layer.backend for layer in model.modules() if isinstance(layer, Int8Linear)} == {
        "cpu" if backend == "cpu" else "reference"}


@pytest.mark.parametrize(("change", "message"), [
    (dict(x=torch.zeros(3, 7)), r"x has shape \[3, 7\] and codes \[5, 8\]"),
    (dict(x=torch.zeros(3, 8, dtype=torch.int32)), "x has dtype Int"),
    (dict(codes=torch.zeros(5, 8)), "codes has dtype Float, wanted Char"),
    (dict(absmax=torch.zeros(4)), r"absmax has shape \[4\], wanted \[5\]"),
    (dict(threshold=0.0), "threshold 0 is not allowed: use a positive size, or infinity"),
    (dict(threshold=math.nan), "threshold nan is not allowed"),
])
def test_wrong_arguments_are_refused_with_the_wanted_and_the_given(change, message):
    stored = quantize_int8(normal(5, 8))
    given = {**dict(x=torch.zeros(3, 8), codes=stored.codes, absmax=stored.absmax, threshold=6.0), **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.minillama.int8_matmul(*given.values())


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.quant.int8", "int8_matmul(x, self, self.backend)",
           "int8_matmul(2 * x, self, self.backend)",
           test_a_layer_multiplies_by_the_backend_that_it_is_given_and_keeps_its_gradient),
    Mutant("minillama.quant.int8", "return Int8Tensor(self.codes, self.absmax, self.threshold, self.backend)",
           "return Int8Tensor(self.codes, self.absmax, self.threshold)",
           test_a_layer_multiplies_by_the_backend_that_it_is_given_and_keeps_its_gradient),
    Mutant("minillama.backends", "backend in layer.backends", 'backend in kernels.KERNELS["nf4_matmul"]',
           lambda: test_a_model_multiplies_int8_by_the_kernels_asked_for_where_there_are_any("simt")),
]
