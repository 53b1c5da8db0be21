"""What a setting may be: written beside the field of a config, and held against the value when a config is made.

    @dataclass(frozen=True)
    class Config:
        steps: int = number(600, 1, 10**9)         # a whole number from 1 to 10^9
        beta1: float = number(0.9, 0, below=1)     # 1 itself is not allowed
        clip_norm: float = number(1.0, 1e-9, 1e9, or_zero=True)
        dtype: str = choice("float32", "float32", "bfloat16")

        def __post_init__(self):
            check_config(self)

Every number has a bound, also where the formula has none: beyond it the sums overflow fp32, or memory runs out. A
number that is no field of a config, such as a flag of one command, goes through `check` with the same `Range`.
"""

import math
import re
import typing
from dataclasses import MISSING, dataclass, field, fields

MOST = 10**9  # of what is counted: steps, sequences, tokens
SEEDS = 2**63 - 1  # the largest seed that all generators take: Python's, NumPy's, PyTorch's


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both allowed, and below `below`; 0 in any case if `or_zero`."""

    least: float
    most: float = math.inf
    below: float = math.inf
    or_zero: bool = False

    def __contains__(self, value):
        return self.or_zero and value == 0 or self.least <= value <= self.most and value < self.below

    def __str__(self):
        end = f" to below {self.below}" if self.below < math.inf else f" to {self.most}" if self.most < math.inf else ""
        return f"from {self.least}{end}"


@dataclass(frozen=True)
class Words:
    """Some words, or all that match a pattern."""

    words: tuple
    pattern: str = ""

    def __contains__(self, value):
        return value in self.words or bool(self.pattern and re.fullmatch(self.pattern, value))

    def __str__(self):
        return f"one of {', '.join(self.words)}"


DEVICE = Words(("cpu", "cuda", "cuda:1", "mps"), r"cuda:\d{1,3}")


def number(default=MISSING, least=0, most=math.inf, below=math.inf, or_zero=False):
    """A field of a config that is a number; no default: it has to be given."""
    return _field(default, Range(least, most, below, or_zero))


def choice(default, *words):
    """A field of a config that is one of some words."""
    return _field(default, Words(words))


def device(default="cpu"):
    """A field of a config that names a device of PyTorch's."""
    return _field(default, DEVICE)


def seed(default=0):
    """A field of a config that seeds random numbers."""
    return _field(default, Range(0, SEEDS))


def _field(default, allowed):
    return field(default=default, metadata={"allowed": allowed})


def check_config(config):
    """Hold every field of a config against its type and what it may be; TypeError or ValueError names the field.

    Where None is a field's default, it stands for a number that the config itself fills in.
    """
    for each in fields(config):
        if each.default is None and getattr(config, each.name) is None:
            continue
        check(each.name, getattr(config, each.name), each.type, each.metadata.get("allowed"))


def check(name, value, kind, allowed=None):
    """Raise TypeError where `value` is not of type `kind` (a whole number is a float, True is no number, float means a
    finite one), ValueError where it is not in `allowed`; the message names all three."""
    kinds = typing.get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return
    kind = kinds[0]
    word = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}.get(kind, kind.__name__)
    if allowed:
        word = f"{'0 or ' * allowed.or_zero}{word} {allowed}" if isinstance(allowed, Range) else str(allowed)
    wanted = f"{name} is {value!r}: it must be {word}"
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(wanted)
    if kind is float and not math.isfinite(value) or allowed and value not in allowed:
        raise ValueError(wanted)
