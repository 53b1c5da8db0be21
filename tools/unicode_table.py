"""Write minillama/tokenizer/character_classes.txt anew: what tiktoken takes for a letter, a number and a space.

    PYTHONPATH=. .venv/bin/python tools/unicode_table.py

A pattern of one class gives ids to the characters that it matches and none to the others. Needs tiktoken, in the
version of tests/oracles.txt.
"""

import textwrap
from pathlib import Path

import tiktoken

from minillama.tokenizer.character_classes import PROPERTIES

TABLE = Path(__file__).parents[1] / "minillama" / "tokenizer" / "character_classes.txt"
NAMES = ("letter", "number", "space")


def ranges_of(name):
    """[[first, last]] of the code points that the class `name` matches."""
    one_byte_each = {bytes([byte]): byte for byte in range(256)}
    oracle = tiktoken.Encoding("bytes", pat_str=f"{name}+", mergeable_ranks=one_byte_each, special_tokens={})
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    found = []
    for code in map(ord, bytes(oracle.encode_ordinary(everything)).decode()):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def main():
    """Three entries of ranges in hexadecimal, wrapped."""
    entries = []
    for name, pattern in zip(NAMES, PROPERTIES.values(), strict=True):
        words = [f"{first:x}-{last:x}" if last > first else f"{first:x}" for first, last in ranges_of(pattern)]
        entries.append("\n".join(textwrap.wrap(f"{name}: {' '.join(words)}", 110, break_on_hyphens=False)))
    TABLE.write_text(";\n".join(entries) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
