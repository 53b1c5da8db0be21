"""One tensor against another: what is taken as rounding, as a factor, as an order; and what is left over."""

import pytest
import torch
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.parity.checkpoint_diff import find_rounding
from minillama.parity.tensor_diff import explain, factor_words, fit, row_order, runs

CONFIG = ModelConfig(dim=33, n_layers=1, n_heads=3, head_dim=12, vocab_size=53, hidden_dim=31)
NAME = "layers.0.feed_forward.w1.weight"


def matrix(rows=31, columns=33, seed=0):
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed)) / 8


def said_of(here, there, name=NAME, others=()):
    return explain(name, here, there, lambda: others, CONFIG)


def test_a_bf16_copy_hides_no_weight_that_is_further_off_than_half_a_step():
    there = matrix()
    here = there.bfloat16().float()
    step = 2.0 ** (torch.frexp(here[4, 5]).exponent.item() - 8)
    here[4, 5] += step * (there[4, 5] - here[4, 5]).sign()  # the farther one of its neighbours in bf16
    assert 0.5 < abs(here[4, 5] - there[4, 5]) / step < 1
    assert find_rounding(there, here) == "" and fit(there, here).mask.nonzero().tolist() == [[4, 5]]
    _, said, grain = said_of(here, there)
    assert grain == "bf16" and len(said) == 1 and said[0].startswith("row 4, column 5: ")


def test_a_step_of_one_weight_between_two_bf16_files_is_seen():
    there = matrix().bfloat16().float()
    here = there.clone()
    here[2, 3] *= 1 + 2.0 ** -7
    here = here.bfloat16().float()
    assert fit(there, here).mask.nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize("factor", [2.0, 0.5, -1.0, 1.0001, -3.25, 0.125, 7e-4, 12 ** 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_factor_is_found_to_five_digits_or_to_its_rounding(factor, dtype):
    there = matrix(67, 95)
    found = fit(there, (there * factor).to(dtype).float())
    error = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 4 / (67 * 95 / 2) ** 0.5 * 5  # five deviations
    assert found.left == 0 and (abs(found.factor / factor - 1) < error or factor == 1.0001 and found.factor == 1)


def test_factors_have_the_names_of_what_they_come_from():
    assert factor_words(12 ** 0.5, CONFIG) == "x3.4641 (sqrt(head_dim))"
    assert factor_words(-(33 ** -0.5), CONFIG) == "x-0.17408 (1/sqrt(dim))" and factor_words(0.0, CONFIG) == "all zeros"


def test_the_nearest_rows_are_found_also_if_scaled_and_among_equal_ones_the_own():
    there = matrix()
    order = torch.randperm(31, generator=torch.Generator().manual_seed(2))
    assert torch.equal(row_order(there, there[order] * -3), order)
    there[4:9] = there[4]
    assert torch.equal(row_order(there, there), torch.arange(31))
    there[:] = there[0] + matrix(seed=3) * 1e-5  # a dot product cannot tell such rows apart
    assert torch.equal(row_order(there, there.roll(1, 0))[1:], torch.arange(30))


def test_rows_are_counted_in_heads_only_where_whole_heads_changed():
    assert runs([0] * 4 + [2] * 4, "row", 4) == ("head", 4, [(0, 4, 0), (4, 8, 2)])
    assert runs([0] * 3 + [2] * 5, "row", 4) == ("row", 1, [(0, 3, 0), (3, 8, 2)])


def test_factors_by_head_row_and_column_are_told_under_rounding():
    there = matrix(36)
    name = "layers.0.attention.wq.weight"
    for dtype in (torch.float32, torch.bfloat16):
        here = there.clone()
        here[12:24] *= 0.5
        here[24:] *= -2
        assert said_of(here.to(dtype).float(), there, name)[1] == ["head 1 x0.5, head 2 x-2"]
        here = there * torch.linspace(0.5, 1.5, 33)
        words = said_of(here.to(dtype).float(), there, name)[1][0]
        assert words.startswith("column 0 x0.5, column 1 x0.531") and words.endswith(" more")


def test_noise_is_told_by_its_size_and_a_mistake_in_it_is_found():
    there, noise = matrix(), matrix(seed=4) / 20
    assert said_of(there + noise, there)[1] == ["noise of 0.05 of its size"]
    here = there.flip(0) + noise
    here[3, 4] = 9
    assert said_of(here, there)[1][:2] == ["rows in reverse order", "noise of 0.05 of its size"]
    assert said_of(here, there)[1][2].startswith("row 3, column 4: 9 here, ")


def test_unrelated_numbers_are_called_so():
    _, said, grain = said_of(matrix(seed=5), matrix())
    assert len(said) == 1 and said[0].startswith("other numbers: they differ by 1.3 of the size") and grain == ""


def test_many_weights_are_told_by_the_rectangle_they_lie_in():
    there = matrix()
    here = there.clone()
    here[4:7, 10:15] += 1
    assert said_of(here, there)[1][0].startswith("15 weights in rows 4 to 6, columns 10 to 14 differ; most at row ")


def test_another_tensor_is_named_with_what_was_done_to_it():
    there, other = matrix(33, 33), matrix(33, 33, seed=6)
    here = other.T.clone() * 2
    here[1, 2] = 5
    source, said, _ = said_of(here, there, others=[("other", other)])
    assert source == "other" and said[:2] == ["transposed", "x2"] and said[2].startswith("row 1, column 2: 5 here")


TENSOR = "minillama.parity.tensor_diff"
MUTANTS = [
    Mutant(TENSOR, "limits.max)).exponent - 2", "limits.max)).exponent - 1",
           test_a_bf16_copy_hides_no_weight_that_is_further_off_than_half_a_step),
    Mutant(TENSOR, "trial.left > worth:", "trial.left > 9999 * worth:",
           test_a_bf16_copy_hides_no_weight_that_is_further_off_than_half_a_step),
    Mutant(TENSOR, "(left + right[order]).norm(dim=1)", "(left - right[order]).norm(dim=1)",
           test_the_nearest_rows_are_found_also_if_scaled_and_among_equal_ones_the_own),
    Mutant(TENSOR, "for by in (*moved[counts.argsort()[-3:]].tolist(), -1, 1, 0):", "for by in (0,):",
           test_the_nearest_rows_are_found_also_if_scaled_and_among_equal_ones_the_own),
    Mutant(TENSOR, "if unit and not any(edge % unit for edge in edges):", "if unit:",
           test_rows_are_counted_in_heads_only_where_whole_heads_changed),
    Mutant(TENSOR, "tries = [(own, False), (own, True), (others, False), (others, True)]", "tries = [(own, False)]",
           test_noise_is_told_by_its_size_and_a_mistake_in_it_is_found),
    Mutant(TENSOR, "2 * trial.left < best[0].left", "trial.left < 0",
           test_another_tensor_is_named_with_what_was_done_to_it),
]
