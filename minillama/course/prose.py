"""Markdown and inline LaTeX of a lesson as text for a terminal: enough for what lessons use, and nothing more."""

import json
import re
import unicodedata
from pathlib import Path

BOLD, ITALIC, CODE, SOFT, END = "\033[1m", "\033[3m", "\033[36m", "\033[90m", "\033[0m"
SYMBOLS = json.loads(Path(__file__).with_name("latex.json").read_text(encoding="utf-8"))  # \alpha -> its letter
RAISED = dict(zip("0123456789+-()niTt", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱᵀᵗ", strict=True))
LOWERED = dict(zip("0123456789+-()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
BRACES = r"\{((?:[^{}]|\{[^{}]*\})*)\}"


def math_text(latex):
    r"""Inline LaTeX in one line of Unicode.

    >>> math_text(r"\theta^{-2j/d}"), math_text(r"\frac{1}{D} \sum_j x_j^2"), math_text(r"\sqrt{1+L}")
    ('θ^(-2j/d)', '1/D Σⱼ xⱼ²', '√(1+L)')
    """
    text = latex
    for _ in range(4):  # innermost braces first
        text = re.sub(r"\\[dt]?frac" + BRACES + BRACES, lambda m: f"{_group(m[1])}/{_group(m[2])}", text)
        text = re.sub(r"\\sqrt" + BRACES, lambda m: f"√({m[1]})", text)
        text = re.sub(r"\\(?:text|mathrm|mathbf|operatorname|mathit|mathcal|textbf)" + BRACES, r"\1", text)
        text = re.sub(r"\\(?:hat|tilde|bar|overline|vec|widehat)" + BRACES, r"\1'", text)
    text = re.sub(r"\\(?:hat|tilde|bar|overline|vec) ?(\w)", r"\1'", text)
    text = re.sub(r"\\(?:left|right|big|Big|bigl|bigr|displaystyle)(?![a-zA-Z])\.?", "", text)
    text = re.sub(r"\\([a-zA-Z]+)", lambda m: SYMBOLS.get(m[1], m[1]), text).replace("^ᵀ", "ᵀ")
    text = re.sub(r"\\[,;!: ]", " ", text)
    for inside in (r"([_^])()([^\s{])", r"([_^])" + BRACES + "()"):  # f_j before e^{f_j}
        text = re.sub(inside, _script, text)
    return re.sub(r" +", " ", text.replace("\\", "").replace("{", "").replace("}", "")).strip()


def _group(text):
    return text if re.fullmatch(r"[\w\\]+", text.strip()) else f"({text})"


def _script(match):
    inside, table = match[2] or match[3], LOWERED if match[1] == "_" else RAISED
    if all(letter in table for letter in inside):
        return "".join(table[letter] for letter in inside)
    return match[1] + (inside if len(inside) == 1 else f"({inside})")


def inline(text, colour):
    """One line's `code`, $formula$, **strong**, *stress* and [links](...) for the terminal."""
    bold, italic, code, end = (BOLD, ITALIC, CODE, END) if colour else ("", "", "", "")
    parts = []
    for number, part in enumerate(re.split(r"(`[^`]+`|\$[^$]+\$)", text)):
        if number % 2 and part[0] == "`":
            parts.append(code + (part[1:-1] if colour else part) + end)
        elif number % 2:
            parts.append(italic + math_text(part[1:-1]) + end)
        else:
            part = re.sub(r"\[([^\]]+)\]\((http[^)]+)\)", r"\1 <\2>", part)
            part = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", part)
            part = re.sub(r"\*\*(.+?)\*\*", rf"{bold}\1{end}", part)
            parts.append(re.sub(r"(?<!\*)\*([^*\s][^*]*)\*(?!\*)", rf"{italic}\1{end}", part))
    return "".join(parts)


def markdown(text, colour=False):
    """A prose cell as lines: paragraphs as written, formulas by their ascii line, tables in columns."""
    lines, table = [], []
    for line in [*_joined(text), ""]:
        if line.startswith("|"):
            table.append([inline(part.strip(), colour) for part in re.split(r"(?<!\\)\|", line.strip("|"))])
            continue
        if table:
            lines += _table(table)
            table = []
        if line.startswith("$$"):
            continue
        if line.startswith("ascii:"):
            lines.append("    " + (BOLD if colour else "") + line[6:].strip() + (END if colour else ""))
        elif line.startswith("#"):
            lines.append((BOLD if colour else "") + inline(line.lstrip("# "), False) + (END if colour else ""))
        else:
            lines.append(inline(line, colour))
    return lines[:-1]


def _joined(text):
    """Lines, those put together over whose end a `code`, $formula$ or **strong** reaches."""
    kept = ""
    for line in text.splitlines():
        kept = f"{kept} {line.strip()}" if kept else line
        plain = re.sub(r"\$\$.*\$\$", "", kept)
        if line.startswith(("|", "ascii:")) or not (plain.count("`") % 2 or plain.replace("$$", "").count("$") % 2
                                                    or plain.count("**") % 2):
            yield kept
            kept = ""
    if kept:
        yield kept


def _table(rows):
    """Cells padded to columns; the rule under the head becomes dashes."""
    rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    count = max(map(len, rows))
    rows = [row + [""] * (count - len(row)) for row in rows]
    widths = [max(width(row[i]) for row in rows) for i in range(count)]
    for number, row in enumerate(rows):
        padded = (cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True))
        yield "  " + "  ".join(padded).rstrip()
        if number == 0:
            yield "  " + "  ".join("─" * size for size in widths)


def width(text):
    """Columns of a terminal that a text takes: no escape codes, two for Chinese characters."""
    plain = re.sub(r"\033\[[\d;]*m", "", text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in plain)
