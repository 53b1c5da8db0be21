"""The script a character belongs to (Latin, Greek, Han, ...), as BPE training needs it: no piece mixes two scripts.

unicode_scripts.txt is the property Script of the Unicode Character Database, version 9.0, which is the version whose
scripts LLaMA's and SentencePiece's vocabularies were cut by. Characters that are not listed, and so all that
Unicode added later, are "Common", like punctuation and digits. "Inherited" marks combine with any script.
"""

import functools
from bisect import bisect_right
from pathlib import Path


@functools.cache
def read_ranges(name):
    """[(first, last, class), ...] in the order of a table beside this file, `class: first-last first-last ...;` of
    code points in hexadecimal."""
    table, found = Path(__file__).with_name(name).read_text(encoding="utf-8"), []
    for entry in table.split(";"):
        kind, _, ranges = entry.strip().partition(":")
        for one in ranges.split():
            first, _, last = one.partition("-")
            found.append((int(first, 16), int(last or first, 16), kind))
    return found


RANGES = sorted(read_ranges("unicode_scripts.txt"))
_FIRSTS = [first for first, _, _ in RANGES]


def script_of(character):
    """Name of the script of one character, "Common" if the table has none.

    >>> script_of("a"), script_of("ж"), script_of("5"), script_of("\\u0301")
    ('Latin', 'Cyrillic', 'Common', 'Inherited')
    """
    code = ord(character)
    index = bisect_right(_FIRSTS, code) - 1
    if index >= 0 and code <= RANGES[index][1]:
        return RANGES[index][2]
    return "Common"
