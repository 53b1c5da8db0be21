"""Bounds of rounding errors: no fp32, bf16 or fp16 result is beyond its own, and none is far wider than need be."""

import math
from fractions import Fraction

import pytest
import torch
from mutants import Mutant

from minillama.parity.rounding import FP32, Bounded, exact, gamma, unit_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def held(found, computed, least=0.0):
    """Within the bound everywhere; somewhere it needs `least` of it."""
    error = (computed.double() - found.value).abs()
    assert bool((error <= found.error).all())
    assert (error / found.error.clamp(min=1e-300)).max() >= least


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_operation_is_off_by_half_a_unit_in_the_last_place_at_most(dtype):
    a, b = normal(10007, dtype=dtype), normal(10007, seed=1, dtype=dtype)
    for operate in (lambda x, y: x * y, lambda x, y: x + y, lambda x, y: x - y):
        found = operate(exact(a, dtype), exact(b, dtype))
        assert torch.equal(found.value, operate(a.double(), b.double()))
        held(found, operate(a, b), least=0.9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chained_operations_stay_within_the_bounds_that_were_passed_on(dtype):
    """A product whose error is most of what is left when c is taken away, times 100."""
    a, b, d = (normal(10007, seed=seed, dtype=dtype) for seed in range(3))
    c = a * b * (1 + 4 * torch.finfo(dtype).eps)
    difference, found = a * b - c, exact(a, dtype) * exact(b, dtype) - exact(c, dtype)
    held(found, difference, least=0.4)
    held(found * exact(d, dtype), difference * d, least=0.4)
    held(found * 0.3 + exact(a, dtype), difference * 0.3 + a, least=0.4)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1009, 4096])
def test_sums_of_products_in_any_order_are_within_their_bound(n):
    """One after another, pairwise and in a library's order, of numbers that do not cancel and of some that do."""
    for a, b in ((normal(40, n), normal(n, 3, seed=1)), (normal(40, n).abs(), normal(n, 3, seed=1).abs())):
        found = exact(a) @ exact(b)
        held(found, a @ b)
        in_turn = torch.zeros(40, 3)
        for k in range(n):
            in_turn += a[:, k, None] * b[k]
        held(found, in_turn)
        held(exact(a).sum(), a.sum(-1, keepdim=True))
        held(exact(a).sum(), a.flip(-1).cumsum(-1)[:, -1:])


def test_sums_of_numbers_of_few_bits_have_no_error_until_they_outgrow_24():
    a, b = ((8 * normal(*shape, seed=shape[0])).round() / 8 for shape in ((41, 64), (64, 3)))
    assert not (exact(a) @ exact(b)).error.any()
    held(exact(a) @ exact(b), a @ b)
    for larger in (2**16 * a + 0.125, a + 1 / 16):  # sums beyond 2^18; products that are no multiples of 1/64
        held(exact(larger) @ exact(b), larger @ b)
        assert (exact(larger) @ exact(b)).error.all()


def test_the_bound_of_a_long_sum_is_at_most_ten_times_what_one_of_400_sums_needs():
    """Numbers of one sign, added in turn: n u, without the root, would be 80 times."""
    n, in_turn = 4096, torch.zeros(400)
    terms = normal(400, n).abs()
    for k in range(n):
        in_turn += terms[:, k]
    held(exact(terms).sum(), in_turn[:, None], least=0.1)


def test_gamma_is_the_textbooks_for_few_terms_and_grows_like_the_root_for_many():
    assert gamma(1) == FP32 / (1 - FP32) and gamma(16) == 16 * FP32 / (1 - 16 * FP32)
    assert gamma(10000) == pytest.approx(400 * FP32, rel=1e-4)
    exact_product = Fraction(1)
    for _ in range(16):  # the worst case: every rounding goes up by u
        exact_product *= 1 + Fraction(1, 2**24)
    assert exact_product - 1 <= Fraction(gamma(16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_within_its_bound_however_large_the_scores_and_zero_where_nothing_is_seen(dtype):
    for size in (0.1, 1, 30):
        scores, off = size * normal(64, 33), size * 2.0**-12 * normal(64, 33, seed=1)
        seen = torch.arange(33) <= torch.arange(64)[:, None] - 3
        found = Bounded(scores.double(), off.abs().double()).softmax(seen, 40 * FP32)
        computed = (scores + off).masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0)
        held(found, computed)
        assert not found.value[:3].any() and not found.error[:3].any()
        assert torch.allclose(found.value[3:].sum(-1), torch.ones(61, dtype=torch.float64))
    wide = Bounded(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))  # the second score may be off by 1: 1 / (1 + e^-1)
    assert wide.softmax(torch.ones(1, 2, dtype=torch.bool)).error[0, 1] >= 1 / (1 + math.exp(-1)) - 0.5


def test_what_underflows_is_within_its_bound():
    tiny = normal(1009, dtype=torch.float16) * 2.0**-12
    held(exact(tiny, torch.float16) * exact(tiny, torch.float16), tiny * tiny, least=0.9)
    zero = exact(torch.zeros(1))
    assert zero.stored(torch.float16).error == 2.0**-25 and zero.stored(torch.float32).error == 2.0**-126


def test_units_are_half_of_eps():
    assert [unit_of(dtype) for dtype in DTYPES] == [2.0**-24, 2.0**-8, 2.0**-11]


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_products_of_halves_are_summed_in_fp32_and_rounded_once(dtype):
    a, b = normal(17, 100, dtype=dtype), normal(100, 5, seed=1, dtype=dtype)
    held((exact(a) @ exact(b)).stored(dtype), (a.float() @ b.float()).to(dtype), least=0.5)
    assert torch.equal((exact(a, dtype) @ exact(b, dtype)).error, (exact(a) @ exact(b)).stored(dtype).error)


MODULE = "minillama.parity.rounding"


def chained():
    test_chained_operations_stay_within_the_bounds_that_were_passed_on(torch.float32)


MUTANTS = [
    Mutant(MODULE, "eps / 2", "eps / 4", lambda: test_one_operation_is_off_by_half_a_unit_in_the_last_place_at_most(
        torch.bfloat16)),
    Mutant(MODULE, "eps / 2", "eps", lambda: test_one_operation_is_off_by_half_a_unit_in_the_last_place_at_most(
        torch.bfloat16)),
    Mutant(MODULE, "SPREAD * math.sqrt(n)", "0.01 * math.sqrt(n)",
           lambda: test_sums_of_products_in_any_order_are_within_their_bound(1009)),
    Mutant(MODULE, "<= 2**18", "<= 2**40", test_sums_of_numbers_of_few_bits_have_no_error_until_they_outgrow_24),
    Mutant(MODULE, "min(n, SPREAD * math.sqrt(n))", "n",
           test_the_bound_of_a_long_sum_is_at_most_ten_times_what_one_of_400_sums_needs),
    Mutant(MODULE, "self.value * other.value,\n", "self.value * other.value.abs(),\n",
           lambda: test_one_operation_is_off_by_half_a_unit_in_the_last_place_at_most(torch.float32)),
    Mutant(MODULE, "self.value - other.value, self.error + other.error", "self.value - other.value, self.error * 0",
           chained),
    Mutant(MODULE, "self.error * (other.value.abs() + other.error)", "self.error * 0", chained),
    Mutant(MODULE, "factor * (value * factor).sum(-1, keepdim=True)", "factor",
           lambda: test_softmax_is_within_its_bound_however_large_the_scores_and_zero_where_nothing_is_seen(
               torch.float32)),
    Mutant(MODULE, " + lost, self.dtype)", ", self.dtype)", test_what_underflows_is_within_its_bound),
]
