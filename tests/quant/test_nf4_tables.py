"""NF4's tables and its mean scale: the published numbers, with the same bits on every processor."""

from fractions import Fraction

import pytest
import torch
from mutants import Mutant
from oracles_quant import PUBLISHED_NF4, normal_quantile
from test_nf4 import NF4, bitsandbytes, normal

from minillama.parity.rounding import FP32
from minillama.quant.nf4 import dynamic_map, fp32, normal_float_levels, quantize_nf4


def test_levels_are_the_published_ones_to_one_fp32_step():
    levels = normal_float_levels()
    assert max(abs(a - b) for a, b in zip(levels, PUBLISHED_NF4, strict=True)) <= 1.2e-7
    assert levels[7] == 0.0 and levels[0] == -1.0 and levels[15] == 1.0 and list(levels) == sorted(levels)


def test_levels_are_quantiles_of_the_normal_distribution():
    """Against bisection on erf in float64; 2.5e-7: the probabilities were rounded to fp32 before the
    quantile."""
    offset = 1 - (1 / 32 + 1 / 30) / 2
    positive = [normal_quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    negative = [-normal_quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    wanted = sorted([x / positive[0] for x in [*positive, *negative, 0.0]])
    assert normal_float_levels() == pytest.approx(wanted, abs=2.5e-7)


def test_dynamic_map_is_bitsandbytes_as_processors_with_fused_products_make_it():
    """On another one PyTorch rounds a step of its table more: three roundings of numbers up to 1."""
    theirs, ours = bitsandbytes().create_dynamic_map().tolist(), dynamic_map()
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert list(ours) == theirs
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 3 * FP32
    assert len(set(ours)) == 256 and ours[127] == 0.0


def test_the_mean_absmax_is_that_of_exact_arithmetic_in_any_order():
    """As fractions, rounded once; one scale for each two weights."""
    for seed in range(8):
        scales = normal(1009, seed=seed).abs()
        wanted = fp32(float(sum(map(Fraction, scales.tolist())) / 1009))
        for some in (scales, scales.flip(0), scales.sort().values):
            assert float(quantize_nf4(some.repeat_interleave(2), block_size=2).absmax_offset) == wanted


MUTANTS = [
    Mutant(NF4, "evenly_spaced(0.9677083,", "evenly_spaced(0.9687500,",
           test_levels_are_the_published_ones_to_one_fp32_step),
    Mutant(NF4, "sorted([*quantiles(8), 0.0, *(-q for q in quantiles(7))])",
           "sorted([*quantiles(7), 0.0, *(-q for q in quantiles(8))])",
           test_levels_are_quantiles_of_the_normal_distribution),
    Mutant(NF4, "math.fsum(absmax.tolist()) / len(absmax)", "float(absmax.mean())",
           test_the_mean_absmax_is_that_of_exact_arithmetic_in_any_order),
    Mutant(NF4, "10.0 ** (e - 6)", "10.0 ** (e - 7)",
           test_dynamic_map_is_bitsandbytes_as_processors_with_fused_products_make_it),
]
