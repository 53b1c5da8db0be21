"""Faults of one place in a C++ file, by its tokens. Comments, strings, the preprocessor's lines and the definitions of
constants (`constexpr int kRows = 6`) are left alone, and hints to the cache: most of these change the speed alone.

The project writes spaces around binary operators and none beside a template's brackets: that tells them apart.
"""

import re

NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'',
                      re.DOTALL | re.MULTILINE)
UNTOUCHED = re.compile(r"^[^\n]*\bconstexpr\b[^\n(]*=[^\n]*;|^ *FETCH\([^\n]*", re.MULTILINE)
OTHER = {"<": ("<=",), "<=": ("<",), ">": (">=",), ">=": (">",), "==": ("!=",), "!=": ("==",), "&&": ("||",),
         "||": ("&&",), "+": ("-",), "-": ("+",), "*": ("+",), "/": ("*",), "%": ("/",), "&": ("|",), "|": ("&",),
         "<<": (">>",), ">>": ("<<",), "+=": ("-=",), "-=": ("+=",), "*=": ("+=",), "|=": ("&=",)}
BINARY = re.compile(r"(?<= )(" + "|".join(re.escape(op) for op in sorted(OTHER, key=len, reverse=True)) + r")(?= )")
NUMBER = re.compile(r"(?<![\w.'])(0[xX][0-9a-fA-F]+|\d+)([uUlL]*)(?![\w.'])")
WORDS = {"true": "false", "false": "true", "std::min": "std::max", "std::max": "std::min"}
WORD = re.compile(r"(?<![\w:])(" + "|".join(WORDS) + r")(?![\w:])")
CONDITION = re.compile(r"\bif \(")
STATEMENT = re.compile(r"(?<=[;{})])\s*\n[ \t]*((?!(?:return|using|const|constexpr|static|typedef|template|auto|struct|"
                       r"class|enum|else|if|for|while|case|public|private|namespace|explicit|inline|mutable|do)\b)"
                       r"[\w*+\-][^;{}\n]*(?:\n[^;{}\n]*)*;)(?=[ \t]*\n)")


def faults_in(text):
    """[(start, end, replacement)], offsets in characters of the file's text."""
    code = _blank(UNTOUCHED, _blank(NOT_CODE, text))
    found = [(*match.span(), other) for match in BINARY.finditer(code) for other in OTHER[match[0]]]
    found += [(*match.span(), WORDS[match[0]]) for match in WORD.finditer(code)]
    for match in NUMBER.finditer(code):
        value = int(match[1], 0) if not match[1].isdigit() else int(match[1])
        if value < 2**32:  # larger ones are multipliers of hashes
            found += [(*match.span(), f"{other}{match[2]}") for other in {value + 1, value - 1 if value else 1}]
    for match in CONDITION.finditer(code):
        end = _closing(code, match.end())
        found.append((match.end(), end, f"!({text[match.end():end]})"))
    found += [(*match.span(1), ";") for match in STATEMENT.finditer(code)]
    return sorted(found)


def _blank(pattern, text):
    """The text with spaces where the pattern matches; offsets and lines stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _closing(code, start):
    """Where the bracket that was opened before `start` closes."""
    depth = 1
    for place in range(start, len(code)):
        depth += (code[place] == "(") - (code[place] == ")")
        if depth == 0:
            return place
    raise ValueError("a bracket is not closed")
