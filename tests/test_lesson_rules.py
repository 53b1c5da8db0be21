"""Laws of the house rules: a lesson in order passes, and every breach is named with its file and line."""

from pathlib import Path

import pytest
from lesson_rules import breaches
from mutants import Mutant
from test_lesson import LESSON, written


def test_a_lesson_in_order_breaks_no_rule(tmp_path):
    assert breaches(written(tmp_path)) == []


@pytest.mark.parametrize(("old", "new", "words"), [
    ("# # 05 · Halves", "# 05 Halves", "first cell is prose that begins with `# 05 · Title`"),
    ("# # 05 ·", "# # 06 ·", "not those of the course"), ("# Time: 3 s\n", "", "header lines are Covers, Needs, Time"),
    ("# Time: 3 s", "# Time: 3", "whole number of seconds"), ("# Time: 3 s", "# Time: 61 s", "up to 60"),
    ("# Needs: 00", "# Needs: 05", "earlier lessons"), ("# Needs: 00", "# Needs: 0", "earlier lessons"),
    ("`minillama/rms_norm.py`,", "`minillama/no_norm.py`,", "covers minillama/no_norm.py"),
    ("**Question.**", "Question", "asks no"), ("| symbol |", "| name |", "no table"),
    ("# %% naive", "# %%", "the id '' is not"), ("# %% naive", "# %% formula", "'formula' is not"),
    ("# %% naive", "# %% Naive", "'Naive' is not"), ("x = 6\n", "x = 6\n" * 31, "cell naive has 32 lines"),
    ("x = 6\n", "x = 6  " + "#" * 90 + "\n", "line 15 has 97 columns"),
    ("x = 6\n", "x = 6\n" + "# %% a{}\ny = 1\n" * 8, "13 cells"), ("Here", "word " * 900, "words of prose"),
    ("Here it", "Obviously it", "'Obviously' helps nobody"), ("# ascii: y = x / 2\n", "", "after a formula"),
    ("# $$y", "# So $$y", "stands alone"), ("is**:", "is** $x:", "a $ without its partner"),
    ("x = 6", "x = input()", "line 15: calls input"), ("x = 6", "import urllib.request", "imports urllib"),
    ("x = 6", "from socket import socket", "imports socket"), ("x = 6", "import sys\nsys.path.append('.')", "sys.path"),
    ("x = 6", "%matplotlib inline", "invalid syntax"), ("x = 6", "plt.show()", "calls plt.show"),
    ("show(picture", "print(picture", "no figure is shown"), ("assert ", "", "nothing is asserted"),
    ("You should see", "See", "the last cell prints"), ("# %% [markdown] formula", "# %% [markdown] exercise",
                                                        "come together"),
    ("# %% [markdown] question\n", "print()\n# %% [markdown] question\n", "begins"),
])
def test_each_breach_of_a_rule_is_named(tmp_path, old, new, words):
    assert old in LESSON
    many = new.split("# %% a{}")
    text = LESSON.replace(old, "".join(part + (f"# %% a{i}" if i < len(many) - 1 else "")
                                       for i, part in enumerate(many)))
    found = breaches(written(tmp_path, text))
    assert any(words in line for line in found), found
    assert all(line.startswith("05_rms_norm.py: ") for line in found)


def test_150_lines_of_code_are_enough_and_151_are_not(tmp_path):
    def with_lines(count):
        cells = "".join(f"# %% more{i}\n" + "x = 6\n" * 25 for i in range((count - 10) // 25))
        return LESSON.replace("# %% agree", cells + "# %% rest\n" + "x = 6\n" * ((count - 10) % 25) + "# %% agree")

    assert not any("lines of code" in line for line in breaches(written(tmp_path, with_lines(150))))
    assert any("151 lines of code" in line for line in breaches(written(tmp_path, with_lines(151))))


def _one_line_over():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        test_150_lines_of_code_are_enough_and_151_are_not(Path(folder))


MUTANTS = [
    Mutant("lesson_rules", "if count > CODE_LINES:", "if count > CODE_LINES + 1:", _one_line_over),
]
