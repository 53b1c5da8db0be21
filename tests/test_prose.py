"""Laws of prose in a terminal: formulas, tables and lines read well without a page."""

import pytest
from mutants import Mutant

from minillama import prose


@pytest.mark.parametrize(("latex", "text"), [
    (r"x_i^2", "xᵢ²"), (r"\theta^{-2j/d}", "θ^(-2j/d)"), (r"\mathrm{RMSNorm}(x)_i", "RMSNorm(x)ᵢ"),
    (r"\frac{x_i}{\sqrt{\frac{1}{D} \sum_j x_j^2 + \epsilon}}", "xᵢ/(√(1/D Σⱼ xⱼ² + ε))"),
    (r"QK^\top", "QKᵀ"), (r"\log p", "log p"), (r"a \cdot b \le c", "a · b ≤ c"), (r"e^{i m f_j}", "e^(i m fⱼ)"),
    (r"\bar b", "b'"), (r"90{,}000", "90,000"), (r"W_q", "W_q"), (r"\{1, 2\}", "1, 2"), ("T", "T"),
])
def test_inline_formulas_read_well_in_one_line(latex, text):
    assert prose.math_text(latex) == text


def test_prose_keeps_formulas_whole_where_a_line_breaks_inside_them():
    assert prose.markdown("so $x +\ny$ and `a\nb` and **c\nd** end") == ["so x + y and `a b` and c d end"]
    assert prose.markdown("`$x$` stays", colour=False) == ["`$x$` stays"]


def test_tables_stand_in_columns_chinese_included():
    lines = prose.markdown("| a | b |\n|---|---|\n| 注意 | `x` |\n| y | z |")
    assert [prose.width(line[:line.rindex(last)]) for line, last in zip(lines, ("b", "─", "`x`", "z"), strict=True)
            ] == [8, 10, 8, 8]


MUTANTS = [
    Mutant("minillama.prose", 'LOWERED if match[1] == "_" else RAISED', 'RAISED if match[1] == "_" else LOWERED',
           lambda: test_inline_formulas_read_well_in_one_line("x_i^2", "xᵢ²")),
    Mutant("minillama.prose", 'in "WF" else 1', 'in "" else 1', test_tables_stand_in_columns_chinese_included),
]
