"""`lesson N --seeds`: run 0 is the lesson itself, other runs draw other numbers, and failed claims are named."""

import random
import re
from pathlib import Path

import lesson_seeds
import pytest
import torch
from lesson_seeds import compare, main
from mutants import Mutant
from test_lesson import LESSON, written

DRAWS = """import random
import torch

torch.manual_seed(4)
drawn = [random.Random(3).random(), random.Random("a").random(), torch.rand(()).item(),
         torch.rand((), generator=torch.Generator().manual_seed(7)).item()]
x = 6
assert random.Random(3).random() < 0.25, "so it is with seed 3"
"""
CLOSING = 'print("You should see: 1,200 and", *[f"{number:.6f}" for number in drawn])'


def said(folder, text):
    lines = []
    compare(written(folder, text), 2, lines.append)
    return "\n".join(lines)


def drawn_with(by):
    """What the lesson draws with seeds moved by so much, from the generators as they are."""
    torch.manual_seed(4 + by)
    first = torch.rand(()).item()
    return [random.Random(3 + by).random(), random.Random(f"a{by or ''}").random(), first,
            torch.rand((), generator=torch.Generator().manual_seed(7 + by)).item()]


def test_each_number_of_the_closing_line_has_its_mean_and_spread_over_seeds_moved_by_a_thousand(tmp_path):
    text = LESSON.replace("x = 6\n", DRAWS).replace('print(f"You should see: {x / 2}")', CLOSING)
    found, runs = said(tmp_path, text), [drawn_with(0), drawn_with(1000)]
    for n, numbers in enumerate(runs):
        assert f"seed {n}: 1,200 and " + " ".join(f"{number:.6f}" for number in numbers) in found
    assert "number 1: mean 1200, spread 0\n" in found
    for place, (a, b) in enumerate(zip(*runs, strict=True), 2):
        mean, spread = map(float, re.search(rf"number {place}: mean (\S+), spread (\S+)", found).groups())
        assert mean == pytest.approx((a + b) / 2, rel=1e-3) and spread == pytest.approx(abs(a - b) / 2**0.5, rel=0.06)
    holds = [numbers[0] < 0.25 for numbers in runs]
    assert holds == [True, False] and found.count("does not hold: random.Random(3).random() < 0.25") == 1


def compared(*closing):
    """What is said of runs that end with these lines."""
    lines, ends = [], {1000 * n: (line, []) for n, line in enumerate(closing)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesson_seeds, "run_with_seeds_moved", lambda path, by: ends[by])
        lesson_seeds.compare(Path("05_rms_norm.py"), len(closing), lines.append)
    return "\n".join(lines)


def test_lines_of_different_words_have_no_mean():
    found = compared("a", "b")
    assert "seed 0: a\n" in found and "seed 1: b\n" in found and "mean" not in found.replace("means", "")


def a_mean_is_of_all_runs():
    assert "number 1: mean 4, spread 4.4" in compared("1 a", "2 a", "9 a")


def test_one_seed_has_no_spread(capsys):
    with pytest.raises(SystemExit):
        main(["5", "--seeds", "1"])
    assert "--seeds 1: a spread needs at least 2" in capsys.readouterr().err


MUTANTS = [
    Mutant("lesson_seeds", "statistics.mean(values)", "values[0]", a_mean_is_of_all_runs),
]
