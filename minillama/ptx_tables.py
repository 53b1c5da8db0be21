"""The names of PTX and what they are in C++ (NVIDIA's PTX ISA 8.x); read by inline_ptx and ptx_instructions.

ptx.json holds the tables. "mma": shape, d, a, b, c -> bits of an element, its decoder, type of a sum. "exact": whole
instructions that are one function -> its name, the types of what it is given.
"""

import json
from pathlib import Path


class UnsupportedPtx(ValueError):
    """An instruction, or a form of it, that is not translated; the text is the instruction."""


TABLES = json.loads(Path(__file__).with_name("ptx.json").read_text(encoding="utf-8"))
TYPES, SPECIAL, HINTS, EXACT = (TABLES[name] for name in ("types", "special registers", "hints", "exact"))
BINARY, MATH, COMPARE, ATOMIC = (TABLES[name] for name in ("binary", "math", "compare", "atomic"))
MMA = {tuple(form.split()): meaning for form, meaning in TABLES["mma"].items()}
SPACES = ("shared", "shared::cta")
