"""JSON settings beside the weights (`params.json`, `config.json`), read with suspicion."""

import json

MAX_SETTINGS_BYTES = 1_000_000


def read_settings(path, limit=MAX_SETTINGS_BYTES):
    """The JSON object in the file. ValueError if it is not one, or longer than `limit` bytes."""
    try:
        with open(path, "rb") as file:
            text = file.read(limit + 1)
        settings = json.loads(text) if len(text) <= limit else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object of at most {limit} bytes")
    return settings


def whole(settings, name, path, default=None):
    """A positive whole number among the settings; `default` where it is absent or null, if one is given."""
    value = settings.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40:
        raise ValueError(f"{path}: {name} is {value!r}: expected a positive whole number")
    return value


def number(settings, name, path, default=None):
    """A positive finite number among the settings; `default` where it is absent or null, if one is given."""
    value = settings.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18:
        raise ValueError(f"{path}: {name} is {value!r}: expected a positive number")
    return float(value)


def flag(settings, name, path, default=False):
    """True or false among the settings; `default` where it is absent or null."""
    value = settings.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"{path}: {name} is {value!r}: expected true or false")
    return value
