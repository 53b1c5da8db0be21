"""Laws of prose in a terminal: formulas, tables and lines read well without a page."""

import pytest
from mutants import Mutant

from minillama.course import prose


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


@pytest.mark.parametrize(("latex", "text"), [
    (r"\frac{a+b}{2}", "(a+b)/2"), (r"\dfrac{a}{b}", "a/b"), (r"\left( x \right)", "( x )"), (r"\hat{x}", "x'"),
    (r"\tilde x", "x'"), (r"\Big. x", "x"), (r"x_{ij}", "xᵢⱼ"), (r"x^{10}", "x¹⁰"), (r"x_{Q}", "x_Q"),
    (r"x_{Qk}", "x_(Qk)"), (r"x^q", "x^q"), (r"a\,b\;c", "a b c"), (r"\unknown x", "unknown x"), (r"\sqrt{a}", "√(a)"),
    (r"\text{if } x", "if x"), (r"\sqrt{\sqrt{\sqrt{\sqrt{x}}}}", "√(√(√(√(x))))"), (r"\leftarrow", "←"),
    (r"\frac{1}{\frac{2}{\frac{3}{\frac{4}{5}}}}", "1/(2/(3/(4/5)))"),
])
def test_each_form_of_a_formula_has_its_line(latex, text):
    assert prose.math_text(latex) == text


@pytest.mark.parametrize(("text", "plain", "colour"), [
    ("a `b` c", "a `b` c", "a \033[36mb\033[0m c"), ("$x_i$ is", "xᵢ is", "\033[3mxᵢ\033[0m is"),
    ("**a** *b*", "a b", "\033[1ma\033[0m \033[3mb\033[0m"), ("2*3*4 `", "234 `", "2\033[3m3\033[0m4 `"),
    ("[a](http://b) [c](d.md)", "a <http://b> c", "a <http://b> c"), ("$ `", "$ `", "$ `"), ("a * b * c", "a * b * c",
                                                                                      "a * b * c")])
def test_marks_become_colours_or_vanish(text, plain, colour):
    assert (prose.inline(text, False), prose.inline(text, True)) == (plain, colour)


def test_headings_are_bold_formulas_stand_on_their_ascii_line_and_other_lines_stay():
    text = "## A *head*\n\nwords\n$$x = \\frac{1}{2}$$\nascii: x = 1/2\n| a |\n|---|\n| b |"
    assert prose.markdown(text) == ["A head", "", "words", "    x = 1/2", "  a", "  ─", "  b"]
    assert prose.markdown(text, True) == ["\033[1mA head\033[0m", "", "words", "    \033[1mx = 1/2\033[0m", "  a",
                                          "  ─", "  b"]
    assert prose.markdown("one `open\nand no end") == ["one `open and no end"], "nothing is lost where a mark is open"
    assert prose.markdown("") == []


def test_a_table_is_as_wide_as_its_widest_cells_and_short_rows_are_filled():
    assert prose.markdown("| a | b | c |\n|:--|:-:|--:|\n| long |\n| d | e |") == [
        "  a     b  c", "  ────  ─  ─", "  long", "  d     e"]
    assert prose.markdown("| a | bb |\n|---|---|\n| c \\| d | e |") == ["  a       bb", "  ──────  ──", "  c \\| d  e"]
    assert [prose.width(text) for text in ("a\u0301", "注", "\033[1;36mx\033[0m", "")] == [1, 2, 1, 0]


MUTANTS = [
    Mutant("minillama.course.prose", 'LOWERED if match[1] == "_" else RAISED', 'RAISED if match[1] == "_" else LOWERED',
           lambda: test_inline_formulas_read_well_in_one_line("x_i^2", "xᵢ²")),
    Mutant("minillama.course.prose", 'in "WF" else 1', 'in "" else 1', test_tables_stand_in_columns_chinese_included),
]
