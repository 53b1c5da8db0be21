"""JSON settings beside the weights (`params.json`, `config.json`), read with suspicion.

known_settings.json lists, for each form, the settings that are read or change no number, those that LLaMA has off, and
those of which some values are LLaMA's. Any other word may change what is computed: it is refused, not ignored.
"""

import json
import math
from pathlib import Path

from minillama.files import atomic_write
from minillama.snapshot import opened
from minillama.terminal import one_line

MAX_SETTINGS_BYTES = 1_000_000
KNOWN = json.loads(Path(__file__).with_name("known_settings.json").read_text())


def read_settings(path, limit=MAX_SETTINGS_BYTES):
    """The JSON object in the file. ValueError if it is not one, or longer than `limit` bytes."""
    with opened(path) as (file, _):
        text = file.read(limit + 1)
    try:
        settings = json.loads(text) if len(text) <= limit else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object of at most {limit} bytes")
    return settings


def write_settings(path, settings):
    """Write a JSON object; the file appears whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(settings, indent=2) + "\n")


def whole(settings, name, path, default=None):
    """A positive whole number among the settings; `default` where it is absent or null, if one is given."""
    return int(_fitting(settings, name, path, default, "a positive whole number",
                        lambda value: type(value) in (int, float) and 0 < value < 2**40 and value == int(value)))


def number(settings, name, path, default=None):
    """A positive finite number among the settings; `default` where it is absent or null, if one is given."""
    return float(_fitting(settings, name, path, default, "a positive number",
                          lambda value: type(value) in (int, float) and 0 < value < 1e18))


def flag(settings, name, path, default=False):
    """True or false among the settings; `default` where it is absent or null."""
    return _fitting(settings, name, path, default, "true or false", lambda value: isinstance(value, bool))


def _fitting(settings, name, path, default, wanted, fits):
    value = settings.get(name)
    if value is None and default is not None:
        return default
    if not fits(value):
        raise ValueError(f"{path}: {name} is {value!r}: expected {wanted}")
    return value


def check_known(settings, path, form, **fixed):
    """ValueError with the name of the first setting that may change what is computed, by this form's table and by
    `fixed`, {name: harmless values} that depend on the model. A list of these, one for each layer, is harmless too."""
    table = KNOWN[form]
    ignored = (*table.get("obeyed", ()), *table.get("inert", ()))
    fixed = dict.fromkeys(table.get("off", ()), [False, 0, {}, []]) | table.get("fixed", {}) | fixed
    for name, value in settings.items():
        told = f"{path}: {one_line(name)[:80]} is"
        if name in fixed:
            allowed, by_layer = (None, *fixed[name]), isinstance(value, list) and name not in table.get("off", ())
            if not all(any(_same(one, other) for other in allowed) for one in (value if by_layer else [value])):
                raise ValueError(f"{told} {one_line(repr(value)[:80])}: LLaMA's is {' or '.join(map(repr, allowed))}")
        elif name not in ignored and not name.startswith(tuple(word for word in ignored if word.endswith("."))):
            raise ValueError(f"{told} not known here and may change what the model computes: remove it from the file "
                             "if it does not")


def _same(one, other):
    """Equal, where true is not 1, and numbers to the precision of a file's fp32."""
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in (one, other)):
        return type(one) is type(other) and one == other
    return math.isclose(one, other, rel_tol=1e-6)
