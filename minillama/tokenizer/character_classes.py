"""What the patterns of byte-level BPE take for a letter, a number and a space: \\p{L}, \\p{N} and \\s of Unicode 16.0.

Unicode adds letters every year, and a word is cut elsewhere once a character has become one: programs whose tables
differ in age give a text other ids. The models' own programs count by the tables of tiktoken 0.14, so their characters
are listed in character_classes.txt (tools/unicode_table.py writes it), for Python and C++ alike.
"""

import functools
import re

import regex

from .unicode_script import read_ranges

LETTER, NUMBER, SPACE = 1, 2, 3  # as in csrc/cpu/byte_bpe.h, where 0 is any other character
NAMES = {"letter": LETTER, "number": NUMBER, "space": SPACE}
PROPERTIES = {LETTER: r"\p{L}", NUMBER: r"\p{N}", SPACE: r"\s"}


def ranges():
    """[(first, last, class)] by code point."""
    return [(first, last, NAMES[name]) for first, last, name in read_ranges("character_classes.txt")]


def pin_classes(pattern):
    """The pattern, to be compiled by `regex`, with the classes of the table in place of those of its own Unicode."""
    return "(?V1)" + re.sub(r"\\p\{[LN]\}|\\s", lambda found: _correct_class(found[0]), pattern)


@functools.cache
def _correct_class(name):
    """A set for `regex`: what it takes for the class `name`, with what the table has beyond it, without the rest."""
    kind = next(kind for kind, other in PROPERTIES.items() if other == name)
    ours = {code for first, last, of in ranges() if of == kind for code in range(first, last + 1)}
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    theirs = {ord(character) for run in regex.findall(f"{name}+", everything) for character in run}
    more, fewer = (_set_of(sorted(codes)) for codes in (ours - theirs, theirs - ours))
    return f"[[{name}{more}]--[{fewer}]]" if fewer else f"[{name}{more}]"


def _set_of(codes):
    """The inside of a set for `regex`: runs of code points."""
    runs = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in runs)
