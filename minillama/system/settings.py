"""JSON settings beside weights and vocabularies (`params.json`, `config.json` ...), read with suspicion.

known_settings.json lists, for each form, the settings that are read or change no number, those that LLaMA has off, and
those of which some values are LLaMA's. Any other word may change what is computed: it is refused, not ignored.
"""

import contextlib
import contextvars
import fnmatch
import json
import math
from pathlib import Path

from minillama.system.files import atomic_write
from minillama.system.snapshot import open_snapshot
from minillama.system.terminal import one_line

KNOWN = json.loads(Path(__file__).with_name("known_settings.json").read_text())
REQUIRED = object()  # the default of a setting that must be there


def read_settings(path, limit=1_000_000):
    """The JSON object in the file. ValueError if it is not one, or longer than `limit` bytes."""
    with open_snapshot(path) as (file, _):
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


def whole(settings, name, path, default=REQUIRED):
    """A positive whole number among the settings; `default` where it is absent or null, if one is given."""
    return int(_fitting(settings, name, path, default, "a positive whole number",
                        lambda value: type(value) in (int, float) and 0 < value < 2**40 and value == int(value)))


def number(settings, name, path, default=REQUIRED):
    """A positive finite number among the settings; `default` where it is absent or null, if one is given."""
    return float(_fitting(settings, name, path, default, "a positive number",
                          lambda value: type(value) in (int, float) and 0 < value < 1e18))


def flag(settings, name, path, default=False):
    """True or false among the settings; `default` where it is absent or null."""
    return _fitting(settings, name, path, default, "true or false", lambda value: isinstance(value, bool))


def _fitting(settings, name, path, default, wanted, fits):
    value = settings.get(name)
    if value is None and default is not REQUIRED:
        return default
    if not fits(value):
        raise ValueError(f"{path}: {name} is {value!r}: expected {wanted}")
    return value


VERDICTS = contextvars.ContextVar("verdicts", default=None)


@contextlib.contextmanager
def collect_verdicts():
    """A list that `check_known` fills, inside this block, with (setting, "obeyed", "ignored" or what is against it),
    and then refuses nothing."""
    token = VERDICTS.set([])
    try:
        yield VERDICTS.get()
    finally:
        VERDICTS.reset(token)


def check_known(settings, path, form, **fixed):
    """ValueError with the name of the first setting that may change what is computed, by this form's table and by
    `fixed`, {name: harmless values} that depend on the model. A list of these, one for each layer, is harmless too."""
    found = [(name, _verdict(name, value, KNOWN[form], fixed)) for name, value in settings.items()]
    if VERDICTS.get() is not None:
        VERDICTS.get().extend(found)
        return
    for name, verdict in found:
        if verdict not in ("obeyed", "ignored"):
            raise ValueError(f"{path}: {one_line(name)[:80]} {verdict}")


def _verdict(name, value, table, fixed):
    fixed = dict.fromkeys(table.get("off", ()), [False, 0, {}, []]) | table.get("fixed", {}) | fixed
    if name in fixed:
        allowed, by_layer = (None, *fixed[name]), isinstance(value, list) and name not in table.get("off", ())
        if all(any(_same(one, other) for other in allowed) for one in (value if by_layer else [value])):
            return "ignored"
        return f"is {one_line(repr(value)[:80])}: LLaMA's is {' or '.join(map(repr, allowed))}"
    for list_name, verdict in (("obeyed", "obeyed"), ("inert", "ignored")):
        listed = table.get(list_name, ())
        if any(fnmatch.fnmatchcase(name, word) for word in listed):
            return verdict
    return "is not known here and may change what the model computes: remove it from the file if it does not"


def _same(one, other):
    """Equal, where true is not 1, and numbers to the precision of a file's fp32."""
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in (one, other)):
        return type(one) is type(other) and one == other
    return math.isclose(one, other, rel_tol=1e-6)
