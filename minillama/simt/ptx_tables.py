"""The names of PTX and what they are in C++ (NVIDIA's PTX ISA 8.x); read by inline_ptx and ptx_instructions.

ptx.json holds the tables. "mma": shape, d, a, b, c -> bits of an element, its decoder, type of a sum. "forms": whole
instructions, alternatives in brackets -> their C++, or with "= " what is written to operand 0. There {2:u32} is operand
2 read as u32, {2} the operand as it is, $1 what stands in the first brackets.
"""

import json
from pathlib import Path


class UnsupportedPtx(ValueError):
    """An instruction, or a form of it, that is not translated; the text is the instruction."""


TABLES = json.loads(Path(__file__).with_name("ptx.json").read_text(encoding="utf-8"))
TYPES, SPECIAL, HINTS, FORMS = (TABLES[name] for name in ("types", "special registers", "hints", "forms"))
BINARY, MATH, COMPARE, ATOMIC = (TABLES[name] for name in ("binary", "math", "compare", "atomic"))
MMA = {tuple(form.split()): meaning for form, meaning in TABLES["mma"].items()}
SPACES = ("shared", "shared::cta")
