"""Laws of the house rules: a lesson in order passes, and every breach is named with its file and line."""

import tempfile
from pathlib import Path

import pytest
from figure_text import smallest_label, too_small
from lesson_rules import breaches
from lesson_symbols import named_alone, symbols
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
    ("= \\frac{x}{2}$$", "= \\frac{x}{z}$$", "cell formula uses z before it is named: y = "),
    ("Here it **is**:", "Here it **is**, like $a + x$:", "cell formula uses a before"),
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


@pytest.mark.parametrize(("latex", "found"), [
    (r"\hat{y}_t = W_q x^T + \text{all} \ln\, \pi_{old}", [r"\hat{y}", "W", "x", r"\pi"]), ("y^{x}", ["y", "x"]),
    (r"\frac{a}{\mathrm{max}}", ["a"]), ("3 + 4", [])])
def test_a_symbol_is_a_letter_with_its_mark_and_without_its_index(latex, found):
    assert symbols(latex) == found


@pytest.mark.parametrize(("latex", "found"), [("s_t", ["s"]), (r"p(\text{answer})", ["p"]), ("i^2 = -1", ["i"]),
                                              (r"\chi^2 = \sum_i x_i", [r"\chi"]), ("2x", []), ("a b", []), ("3", [])])
def test_a_symbol_alone_is_named_and_one_in_company_is_not(latex, found):
    assert named_alone(latex) == found


def test_a_table_names_its_symbols_and_the_next_paragraph_may_explain_a_formula(tmp_path):
    plain = "# ascii: y = x / 2\n"
    explained = LESSON.replace(r"= \frac{x}{2}$$", r"= \frac{x}{z}$$").replace(plain, plain + "#\n# Here $z$ is 2.\n")
    assert breaches(written(tmp_path, explained)) == []
    later = explained.replace("# Here $z$", "# So.\n#\n# Here $z$")
    assert any("uses z before" in line for line in breaches(written(tmp_path, later)))
    assert any("uses x before" in line for line in breaches(written(tmp_path, LESSON.replace("# | $x$ |", "# | x |"))))


SVG = '<svg viewBox="0 0 {} 200"><text style="font: {}px x">a</text><text><tspan style="font: 7px x">2</tspan>' \
      '<tspan style="font: 12px x">10</tspan></text></svg>'


def test_text_below_ten_pixels_on_a_phone_is_named_and_exponents_are_not():
    assert too_small(SVG.format(390, 10)) == [] and smallest_label(SVG.format(390, 10)) == (10, "a")
    assert too_small(SVG.format(780, 29)) == ["'2 10' has 6.0 pixels on a page of 390, 10 are needed"]
    assert too_small(SVG.format(390, 9.9)) == ["'a' has 9.9 pixels on a page of 390, 10 are needed"]
    with pytest.raises(ValueError, match="no text"):
        smallest_label('<svg viewBox="0 0 1 1"></svg>')


def test_150_lines_of_code_are_enough_and_151_are_not(tmp_path):
    def with_lines(count):
        cells = "".join(f"# %% more{i}\n" + "x = 6\n" * 25 for i in range((count - 10) // 25))
        return LESSON.replace("# %% agree", cells + "# %% rest\n" + "x = 6\n" * ((count - 10) % 25) + "# %% agree")

    assert not any("lines of code" in line for line in breaches(written(tmp_path, with_lines(150))))
    assert any("151 lines of code" in line for line in breaches(written(tmp_path, with_lines(151))))


def _in_a_folder(law):
    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder))


def _one_line_over():
    _in_a_folder(test_150_lines_of_code_are_enough_and_151_are_not)


MUTANTS = [
    Mutant("lesson_rules", "if count > CODE_LINES:", "if count > CODE_LINES + 1:", _one_line_over),
    Mutant("lesson_symbols", "paragraphs[place + 1:place + 2]", "paragraphs[place + 1:]",
           lambda: _in_a_folder(test_a_table_names_its_symbols_and_the_next_paragraph_may_explain_a_formula)),
    Mutant("figure_text", "max(map(float, sizes))", "min(map(float, sizes))",
           test_text_below_ten_pixels_on_a_phone_is_named_and_exponents_are_not),
]
