"""The nearest level is found in one comparison, and the best of some scales by the least squared error."""

import pytest
import torch
from mutants import Mutant

from minillama.quant.nearest import CELLS, best_scales, inverse, nearest, row_sums
from minillama.quant.nf4 import DYNAMIC_MAP, NF4_LEVELS, fp32

MODULE = "minillama.quant.nearest"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_distance(scaled, levels):
    """The first of the least distances to fp32 half-way points, in float64: no search, no cells."""
    levels = torch.tensor(levels, dtype=torch.float32)
    halfway = ((levels[:-1] + levels[1:]) / 2).double()
    return (scaled.double()[:, None] > halfway).sum(1).to(torch.uint8)


@pytest.mark.parametrize("levels", [NF4_LEVELS, DYNAMIC_MAP, (-1.0, 0.0, 0.25, 1.0)], ids=["nf4", "dynamic", "four"])
@pytest.mark.parametrize("n", [0, 1, 2, 31, 1009])
def test_the_nearest_level_is_the_one_that_counting_finds(n, levels):
    found = nearest(normal(n) / 2, levels)
    assert found.dtype == torch.uint8 and torch.equal(found, by_distance(normal(n) / 2, levels))


def test_near_half_way_points_cell_edges_and_beyond_the_ends_it_is_found_as_well():
    """Up to three fp32 steps from each of these points; and infinities, which a scale near zero makes."""
    levels = torch.tensor(NF4_LEVELS)
    points = torch.cat([(levels[:-1] + levels[1:]) / 2, levels, torch.arange(-CELLS, CELLS + 1) / CELLS])
    points = points[points != 0]  # steps below the smallest number are another story: see the next line
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, float("inf"), -float("inf")])
    steps = [(points.view(torch.int32) + step).view(torch.float32) for step in range(-3, 4)]
    scaled = torch.cat([*steps, tiny])
    assert torch.equal(nearest(scaled, NF4_LEVELS), by_distance(scaled, NF4_LEVELS))


def test_no_cell_holds_two_half_way_points_or_one_near_its_edge():
    """x * 32 + 32 is rounded to 2^-18 of a cell at most: a half-way point must be further from the edge than that."""
    levels = torch.tensor(NF4_LEVELS)
    halfway = ((levels[:-1] + levels[1:]) / 2).double() * CELLS
    assert len(set(halfway.floor().tolist())) == len(halfway)
    assert (halfway - halfway.round()).abs().min() > 2.0**-10


def loop(flat, candidates, block_size):
    """The first candidate of least error in each block, in float64."""
    levels = torch.tensor(NF4_LEVELS).double()
    best = []
    for block, x in enumerate(flat.double().split(block_size)):
        errors = [float((scale.double() * levels - x[:, None]).abs().amin(1).square().sum())
                  for scale in candidates[:, block]]
        best.append(min(range(len(errors)), key=errors.__getitem__))
    return best


@pytest.mark.parametrize(("n", "block_size"), [(1, 2), (63, 64), (64, 64), (65, 64), (389, 6), (1009, 64)])
def test_the_best_scale_is_that_of_a_loop_in_float64(n, block_size):
    flat, blocks = normal(n), -(-n // block_size)
    candidates = torch.stack([torch.full((blocks,), scale) for scale in (2.5, 2.0, -2.1, 3.0, 1e-40, 0.0)])
    best, codes = best_scales(flat, candidates, NF4_LEVELS, block_size)
    assert best.tolist() == loop(flat, candidates, block_size)
    scales = candidates.gather(0, best[None])[0].repeat_interleave(block_size)[:n]
    assert torch.equal(codes, by_distance(flat * inverse(scales), NF4_LEVELS))


def test_of_equally_good_scales_it_is_the_first_and_none_that_overflows():
    flat = torch.zeros(64)
    assert best_scales(flat, torch.tensor([[1.0], [2.0]]), NF4_LEVELS, 64)[0].tolist() == [0]
    assert set(best_scales(flat, torch.tensor([[0.0], [2.0]]), NF4_LEVELS, 64)[1].tolist()) == {7}
    flat[0] = 3e38
    assert best_scales(flat, torch.tensor([[3e38], [float("inf")]]), NF4_LEVELS, 64)[0].tolist() == [0]


@pytest.mark.parametrize("width", [1, 2, 3, 6, 31, 64, 100])
def test_rows_are_summed_in_an_order_of_our_own(width):
    """Halves onto halves, each addition rounded to fp32 on its own: the same bits on every processor."""
    rows = normal(7, width) * 10.0 ** (normal(7, width, seed=1) * 3)
    wanted = []
    for row in rows.tolist():
        while len(row) > 1:
            half = (len(row) + 1) // 2
            row = [fp32(a + b) for a, b in zip(row, row[half:], strict=False)] + row[len(row) - half:half]
        wanted.append(row[0])
    assert row_sums(rows.clone()).tolist() == wanted


def near():
    test_near_half_way_points_cell_edges_and_beyond_the_ends_it_is_found_as_well()


def one_block():
    test_the_best_scale_is_that_of_a_loop_in_float64(1009, 64)


MUTANTS = [
    Mutant(MODULE, "CELLS = 32", "CELLS = 4", near),
    Mutant(MODULE, "scaled > above", "scaled >= above", near),
    Mutant(MODULE, "scaled.clamp(-1, 1)", "scaled.clone()", near),
    Mutant(MODULE, "halfway, right=True)", "halfway.roll(1), right=True)", near),
    Mutant(MODULE, "if len(levels) > 16:", "if False:",
           lambda: test_the_nearest_level_is_the_one_that_counting_finds(1009, DYNAMIC_MAP)),
    Mutant(MODULE, ".sub_(blocks).square_())", ".sub_(blocks).abs_())", one_block),
    Mutant(MODULE, "return rows[:, 0]", "return rows.sum(1)", lambda: test_rows_are_summed_in_an_order_of_our_own(64)),
    Mutant(MODULE, "half = (width + 1) // 2", "half = width // 2",
           lambda: test_rows_are_summed_in_an_order_of_our_own(31)),
    Mutant(MODULE, "values.mul_(scales[:, None])", "values", one_block),
    Mutant(MODULE, "error < least", "error <= least",
           test_of_equally_good_scales_it_is_the_first_and_none_that_overflows),
    Mutant(MODULE, "least = torch.minimum(least, error)", "least = error", one_block),
    Mutant(MODULE, "torch.where(scales.abs() < SMALLEST_SCALE, SMALLEST_SCALE, scales)",
           "scales.clamp(min=SMALLEST_SCALE)", lambda: test_the_best_scale_is_that_of_a_loop_in_float64(389, 6)),
]
