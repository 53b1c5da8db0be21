"""Laws of scaling laws: optima against brute force, fits against laws that made the points, figures of the papers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from mutants import Mutant

from lessons.scaling_law import (
    BESIROGLU,
    ERRORS,
    HOFFMANN,
    ScalingLaw,
    best_size,
    break_even,
    cheapest,
    fit,
    loss_of,
    tokens_for,
)

ROOT = Path(__file__).parents[1]
LAWS = HOFFMANN, BESIROGLU, ScalingLaw(0.4, 3.0, 20.0, 0.4, 0.6)


def test_the_best_size_is_the_best_of_all_that_cost_as_much():
    sizes = np.logspace(2, 16, 140_001)
    for law in LAWS:
        for flops in (1e18, 1.2e22, 5e24):
            N, D = best_size(law, flops)
            assert math.isclose(6 * N * D, flops, rel_tol=1e-9)
            tried = sizes[loss_of(law, sizes, flops / (6 * sizes)).argmin()]
            assert abs(N / tried - 1) < 2e-3  # the minimum is flat: losses are rounded at 1e-16


def test_the_printed_law_and_its_correction_disagree_about_chinchilla():
    for law, size, tokens, ratio in ((HOFFMANN, 5.6e9, 357e9, 64), (BESIROGLU, 9.93e9, 201e9, 20)):
        N, D = best_size(law, 1.2e22)
        assert N == pytest.approx(size, rel=0.005) and D == pytest.approx(tokens, rel=0.005)
        assert D / N == pytest.approx(ratio, rel=0.02)


def test_tokens_for_a_loss_undo_the_law():
    for law in LAWS:
        for N, D in ((1e8, 1e9), (7e9, 1e12)):
            assert tokens_for(law, N, loss_of(law, N, D)) == pytest.approx(D, rel=1e-6)
        assert tokens_for(law, 1e4, law.E) == math.inf


def test_the_cheapest_model_is_cheaper_than_all_of_a_grid_and_shrinks_with_use():
    sizes = np.logspace(8, 12, 40_001)
    for law in LAWS[:2]:
        loss, before = loss_of(law, 7e9, 1e12), math.inf
        for served in (0, 1e12, 1e13):
            N, D = cheapest(law, loss, served)
            grid = [n * (6 * tokens_for(law, n, loss) + 2 * served) for n in sizes]
            assert 6 * N * D + 2 * N * served <= min(grid) * (1 + 1e-9)
            assert loss_of(law, N, D) == pytest.approx(loss, rel=1e-9) and N < before
            before = N
    N, D = cheapest(BESIROGLU, loss_of(BESIROGLU, *best_size(BESIROGLU, 1.2e22)), 0)
    assert 6 * N * D == pytest.approx(1.2e22, rel=1e-6)  # two ways to the same model


def test_seven_billion_on_a_million_million_tokens_pay_off_where_both_laws_say():
    for law, other, tokens, served in ((HOFFMANN, 9.5e9, 679e9, 0.29e12), (BESIROGLU, 15.4e9, 306e9, 0.69e12)):
        size, read, break_at = break_even(law, 6.74e9, 1e12)
        assert size == pytest.approx(other, rel=0.005) and read == pytest.approx(tokens, rel=0.005)
        assert break_at == pytest.approx(served, rel=0.02)
        assert 6 * 6.74e9 * 1e12 + 2 * 6.74e9 * break_at == pytest.approx(6 * size * read + 2 * size * break_at)
    assert break_even(BESIROGLU, 65e9, 1e11)[2] == math.inf  # larger than the optimum: never


@pytest.mark.parametrize("known", [True, False])
def test_a_fit_finds_the_law_that_made_the_points(known):
    law = ScalingLaw(0.4, 12.0, 300.0, 0.35, 0.5)
    N, D = np.meshgrid(np.logspace(4, 6, 5), np.logspace(5, 7, 5))
    E = 0.4 if known else None
    found = fit(N.ravel(), D.ravel(), loss_of(law, N, D).ravel(), E=E, starts=((3.0, 5.0, 0.4, 0.4),))
    assert found == pytest.approx(law, rel=1e-3)


def test_a_point_that_counts_nothing_changes_nothing():
    law = ScalingLaw(0.4, 12.0, 300.0, 0.35, 0.5)
    N, D = (column.ravel() for column in np.meshgrid(np.logspace(4, 6, 3), np.logspace(5, 7, 3)))
    losses = loss_of(law, N, D)
    losses[0] *= 3
    found = fit(N, D, losses, E=0.4, weights=[0] + [1] * 8, starts=((3.0, 5.0, 0.4, 0.4),))
    assert found == pytest.approx(law, rel=1e-3)


def test_the_correction_comes_out_of_its_points_within_its_standard_errors():
    points = json.loads((ROOT / "lessons" / "16_scaling.json").read_text(encoding="utf-8"))["points"]
    assert len(points) == 245
    N, C, losses = (np.array(column) for column in zip(*sorted(points, key=lambda point: point[2])[:-5], strict=True))
    found = fit(N, C / (6 * N), losses, starts=((6.0, 7.0, 0.3, 0.3),))
    for mine, theirs, error in zip(found, BESIROGLU, ERRORS, strict=True):
        assert abs(mine - theirs) < error
    off = {law: np.abs(np.log(loss_of(law, N, C / (6 * N)) / losses)).mean() for law in (HOFFMANN, found)}
    assert off[found] < 0.8 * off[HOFFMANN]  # the printed law misses the points that it was fitted to


def test_the_record_has_four_budgets_of_five_sizes_for_three_seeds_and_none_beats_the_entropy():
    record = json.loads((ROOT / "bench" / "scaling.json").read_text(encoding="utf-8"))
    assert len(record["seeds"]) >= 3
    for run in record["seeds"]:
        near = [p for p in run["points"] if p["budget"] < record["far"]]
        assert len({p["budget"] for p in near}) == 4 and len({p["N"] for p in near}) == 5 and len(near) == 20
        assert max(p["budget"] for p in near) * 4 == record["far"]
        for p in run["points"]:  # D is whole batches: less than one of four documents, 122 tokens each, too many
            assert 0 <= p["D"] - p["budget"] / (6 * p["N"]) < 4 * 130 and p["loss"] > run["entropy"]
        best = min((p for p in near if p["budget"] == record["far"] / 4), key=lambda p: p["loss"])
        assert min(p["N"] for p in near) < best["N"] < max(p["N"] for p in near)  # an interior optimum


def test_the_largest_models_of_the_record_fall_with_a_higher_power_of_tokens_than_any_that_the_law_allows():
    """Of A / N^alpha + B / D^beta the local power of D grows with N towards beta, and is never beyond."""
    record = json.loads((ROOT / "bench" / "scaling.json").read_text(encoding="utf-8"))
    for run in record["seeds"]:
        near = [p for p in run["points"] if p["budget"] < record["far"]]
        powers = [math.log((p["loss"] - run["entropy"]) / (q["loss"] - run["entropy"])) / math.log(q["D"] / p["D"])
                  for p, q in zip(near[-10:-5], near[-5:], strict=True)]
        law = fit(*([p[key] for p in near] for key in ("N", "D", "loss")), E=run["entropy"])
        assert powers == sorted(powers) and powers[-1] > law.beta + 0.2


MUTANTS = [
    Mutant("lessons.scaling_law", "(law.alpha * law.A / (law.beta * law.B))",
           "(law.alpha * law.B / (law.beta * law.A))",
           test_the_best_size_is_the_best_of_all_that_cost_as_much),
    Mutant("lessons.scaling_law", "6 * tokens_for(law, math.exp(n), loss) + 2 * served",
           "6 * tokens_for(law, math.exp(n), loss) + 6 * served",
           test_the_cheapest_model_is_cheaper_than_all_of_a_grid_and_shrinks_with_use),
    Mutant("lessons.scaling_law", "served = 3 * (N * D", "served = 6 * (N * D",
           test_seven_billion_on_a_million_million_tokens_pay_off_where_both_laws_say),
    Mutant("lessons.scaling_law", "(counts * torch.nn", "(torch.nn", test_a_point_that_counts_nothing_changes_nothing),
]
