"""NF4 products with activations in int8: integers that every kind of vectors agrees on, and an error that follows."""

import math

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.engine import matrix_of
from minillama.generate import generate_tokens
from minillama.parity.rounding import FP32, gamma
from minillama.quant.nf4 import NF4_LEVELS, NF4Linear, NF4Tensor, quantize_nf4
from minillama.quant.quantize_linears import quantize_linears
from minillama.sampling import Sampling
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
PIECE, STEP = 64, 112
SHAPES = [(1, 64), (13, 64), (12, 192), (17, 576), (5, 2112)]  # (N, K)
ROWS = (1, 2, 3, 4, 5, 9)
MANY = (12, 13, 16, 17, 31)  # by tiles of W, where there is VNNI


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(x, stored):
    return torch.ops.minillama.nf4_matmul_int8(x, *stored.parts(), stored.shape[0], stored.block_size)


def codes_of(x):
    """x (M, K) -> codes (M, pieces, 64) and scales (M, pieces), each step rounded to fp32 as said."""
    pieces = x.view(len(x), -1, PIECE)
    absmax = pieces.abs().amax(-1)
    codes = torch.round(pieces * (127 * (1 / absmax))[..., None]).nan_to_num(0)
    return codes, absmax / 127


def levels_of(stored):
    """(N, pieces, 64) whole numbers and (N, pieces) absmax in fp32."""
    N, K = stored.shape
    nibbles = torch.stack([stored.codes >> 4, stored.codes & 15], 1).flatten()[:N * K].long()
    whole = torch.tensor([round(STEP * level) for level in NF4_LEVELS])[nibbles].view(N, -1, PIECE)
    ones = NF4Tensor(torch.full_like(stored.codes, 0xFF), *stored.parts()[1:], stored.shape, stored.block_size)
    return whole, ones.dequantize().view(N, -1, PIECE)[..., 0]  # level 1 times absmax


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block_size", [64, 192])
def test_it_is_the_sum_of_exact_integers_scaled_in_fp32(block_size, double, vectors):
    """|error| <= gamma(pieces + 20) of the sum of sizes: scales, lanes and pieces added, in any order."""
    for N, K in SHAPES:
        stored = quantize_nf4(normal(N, K), block_size, double)
        levels, absmax = levels_of(stored)
        for M in ROWS + MANY:
            x = normal(M, K, seed=1)
            codes, scales = codes_of(x)
            sizes = (scales.double()[:, None] * absmax.double()[None])[..., None] / STEP  # of a 1 in each piece
            terms = codes.double()[:, None] * levels.double()[None] * sizes
            bound = gamma(K // PIECE + 20) * terms.abs().sum((-1, -2))
            # what makes levels unsigned is taken away in one lane: up to 112 |codes| are added and subtracted
            bound += 8 * FP32 * (STEP * codes.double().abs()[:, None] * sizes).sum((-1, -2))
            y = product(x, stored)
            assert bool(((y.double() - terms.sum((-1, -2))).abs() <= bound).all())


def test_where_all_scales_are_one_every_kind_gives_the_same_whole_numbers(vectors):
    """absmax 1 and x whole numbers up to 127, in every piece: nothing is rounded but the division by 112."""
    generator = torch.Generator().manual_seed(2)
    levels = torch.tensor(NF4_LEVELS)[torch.randint(16, (9, 320), generator=generator)]
    levels[:, ::PIECE] = 1
    x = torch.randint(-127, 128, (MANY[-1], 320), generator=generator).float()
    x[:, 7::PIECE] = 127
    x[1] = -127
    whole, absmax = levels_of(stored := quantize_nf4(levels, double_quantization=False))
    assert bool((absmax == 1).all())
    for M in (6, *MANY):
        assert torch.equal(product(x[:M], stored), (x[:M].long() @ whole.flatten(1).T).float() / STEP)


def test_levels_are_rounded_to_the_multiples_said(vectors):
    """Each level of the table beside zeros, x being 127 at one place after another, odd and even columns."""
    weight = torch.zeros(32, 128)
    for row in range(32):
        weight[row, 0], weight[row, 64], weight[row, 4 * row + row % 4] = 1, 1, NF4_LEVELS[row % 16]
    stored = quantize_nf4(weight, double_quantization=False)
    whole, _ = levels_of(stored)
    for column in range(0, 128, 3):
        x = torch.zeros(1, 128)
        x[0, column] = 127.0
        assert torch.equal(product(x, stored)[0], (127 * whole.flatten(1)[:, column]).float() / STEP)


def test_a_row_has_the_same_bits_whatever_rows_threads_and_places_are_beside_it(vectors):
    """Rows of 1 to 9 among themselves, and of 12 and more: there tiles add pieces in another order."""
    stored, x, threads = quantize_nf4(normal(61, 576)), normal(MANY[-1], 576, seed=1), torch.get_num_threads()
    alone, many = torch.cat([product(row[None], stored) for row in x[:9]]), product(x, stored)
    elsewhere = NF4Tensor(*(torch.cat([part[:1], part])[1:] for part in stored.parts()[:3]), stored.absmax_offset,
                          stored.shape)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for M in ROWS:
                assert torch.equal(product(x[:M], elsewhere), alone[:M])
            for M in MANY:
                assert torch.equal(product(x[-M:], elsewhere), many[-M:])
    finally:
        torch.set_num_threads(threads)


def test_zeros_stay_zero_and_numbers_that_are_none_make_their_row_nan(vectors):
    stored = quantize_nf4(normal(7, 192))
    for M in (4, MANY[-1]):
        x = normal(M, 192, seed=1)
        x[0], x[1, 70], x[2, 3] = 0, math.nan, math.inf
        y = product(x, stored)
        assert not y[0].any() and y[1].isnan().all() and y[2].isnan().all() and torch.isfinite(y[3:]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_numbers_are_rounded_once(dtype, vectors):
    stored, x = quantize_nf4(normal(33, 320)), normal(2, 320, seed=1).to(dtype)
    assert torch.equal(product(x, stored), product(x.float(), stored).to(dtype))


def test_what_is_no_whole_piece_is_refused():
    for N, K, block_size in ((3, 96, 64), (4, 64, 32)):
        with pytest.raises(RuntimeError, match=f"multiples of 64, the weight has {K} and {block_size}: multiply with"):
            product(torch.zeros(1, K), quantize_nf4(normal(N, K), block_size))


def small_model():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(64, 2, 4, 61, n_kv_heads=2, hidden_dim=128, max_seq_len=64)).eval()
    quantize_linears(model)
    return model


def test_a_model_that_is_told_so_multiplies_rounded_activations_and_no_other():
    model, called, real = small_model(), [], kernels.operator_of
    tokens = torch.arange(9)[None]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(kernels, "operator_of", lambda *a: called.append(a[0] if a[3:] == (None,) else a[-1]) or real(*a))
        for activations, name in (("fp32", "nf4_matmul"), ("int8", "nf4_matmul_int8"), ("fp32", "nf4_matmul")):
            called.clear()
            use_kernels(model, "cpu", activations)(tokens)
            assert [each for each in called if "nf4" in str(each)] == [name] * 14
    layer = NF4Linear.from_weight(normal(10, 128))
    layer.activations = "int8"
    x = normal(3, 128, seed=1)
    assert torch.equal(matrix_of(layer).product(x), product(x, layer.packed_weight()))


def test_generation_runs_on_rounded_activations():
    texts = [[ids[0] for ids in generate_tokens(use_kernels(small_model(), "cpu", activations), [[1, 2, 3]], 6,
                                                Sampling(temperature=0.0))] for activations in ("fp32", "int8")]
    assert len(texts[1]) == 6


def test_activations_that_do_not_fit_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match="activations 'int4' are not known: choose from fp32, int8"):
        use_kernels(model, "cpu", "int4")
    with pytest.raises(ValueError, match="activations int8 need kernels 'cpu', given 'torch'"):
        use_kernels(model, "torch", "int8")
    model.layers[1].feed_forward.w2 = NF4Linear.from_weight(normal(64, 96))
    with pytest.raises(ValueError, match="feed_forward.w2 has 96 columns in blocks of 64, and activations int8"):
        use_kernels(model, "cpu", "int8")


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.kernels", 'if stored.activations == "int8"', 'if stored.activations == "int4"',
           test_a_model_that_is_told_so_multiplies_rounded_activations_and_no_other),
    Mutant("minillama.quant.nf4", "self.block_size, self.backend, self.activations)", "self.block_size, self.backend)",
           test_a_model_that_is_told_so_multiplies_rounded_activations_and_no_other),
    Mutant("minillama.backends", "layer.in_features % 64 or layer.block_size % 64", "layer.block_size % 64",
           test_activations_that_do_not_fit_are_refused),
]
