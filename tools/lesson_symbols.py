"""Symbols that a lesson uses before it names them.

A symbol is a Latin or Greek letter in a formula, with the marks on it (a hat, a bar) and without its indices. It is
named by a row of the table `| symbol | ...`, by prose that has it alone between dollar signs ("the judge's score $s$"),
or as the left side of an equation. A formula may be explained by the rest of its paragraph and by the next one.
"""

import re

WORDS = re.compile(r"\\(?:text|mathrm|operatorname|mathbf|mathit|textit)\{[^{}]*\}")
INDEX = re.compile(r"_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|.)")
TRANSPOSED = re.compile(r"\^(?:T\b|\{T\}|\\top)")
GREEK = set("""alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau
upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega""".split())
MARKS = "hat", "bar", "tilde", "vec"
CONSTANTS = {"e", "d", "\\pi"}  # the base of exp, a differential, and 3.14: no lesson need name them
FORMULA = re.compile(r"^\$\$(?P<block>.+)\$\$$|(?<![\\$])\$(?P<inline>[^$]+)\$", re.MULTILINE)


def symbols(latex):
    """The letters of a formula, each once, in their order: `\\hat{y}` is one, `W_q` and `W^T` are both W."""
    latex = TRANSPOSED.sub("", INDEX.sub("", WORDS.sub(" ", latex)))
    found = []
    for token in re.findall(rf"\\(?:{'|'.join(MARKS)})\s*\{{?\\?[A-Za-z]+\}}?|\\[A-Za-z]+|[A-Za-z]", latex):
        name = token.replace(" ", "")
        marked = name.startswith(tuple(f"\\{mark}" for mark in MARKS))
        if (marked or not name.startswith("\\") or name[1:] in GREEK) and name not in found:
            found.append(name)
    return found


def named_alone(latex):
    """[the symbol that stands alone in a formula], with index, arguments, power or value, as in `s_t`, `p(x)` and
    `i^2 = -1`; [] where there are several."""
    left = re.split(r"=|\\in\b|\\approx|<|>", INDEX.sub("", WORDS.sub("", latex)))[0]
    left = re.sub(r"\([^()]*\)\s*$|\^\d", "", left.strip())
    other = re.sub(r"\\[A-Za-z]+|[A-Za-z]|[{}\s]", "", left)
    return symbols(left) if len(symbols(left)) == 1 and not other else []


def unnamed(lesson):
    """Sentences on symbols in a lesson's prose that nothing up to there, or the paragraph behind, has named."""
    named, found = set(CONSTANTS), []
    for cell in (cell for cell in lesson.cells if cell.kind == "markdown"):
        named |= table_symbols(cell.text)
        paragraphs = re.split(r"\n\s*\n", re.sub(r"`[^`\n]*`", "", cell.text))
        for place, paragraph in enumerate(paragraphs):
            named |= prose_symbols(paragraph) | set().union(*map(prose_symbols, paragraphs[place + 1:place + 2]))
            for match in FORMULA.finditer(paragraph):
                latex = match["block"] or match["inline"]
                missing = [symbol for symbol in symbols(latex) if symbol not in named]
                found += [f"cell {cell.id} uses {symbol} before it is named: {latex.strip()}" for symbol in missing]
                named |= set(missing)  # once is enough
    return found


def table_symbols(text):
    """Letters in the first column of a table of symbols."""
    rows = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return {symbol for cell in rows for latex in re.findall(r"\$([^$]+)\$", cell) for symbol in symbols(latex)}


def prose_symbols(paragraph):
    """Symbols that a paragraph names: alone between dollar signs, or as the left side of a formula."""
    found = set()
    for match in FORMULA.finditer(paragraph):
        if match["inline"]:
            found |= set(named_alone(match["inline"]))
        else:
            for part in re.split(r"\\qquad|\\quad|,\s*\\;", match["block"]):
                if "=" in part:
                    found |= set(named_alone(part))
    return found
