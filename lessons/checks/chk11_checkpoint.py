"""Checks of exercise 11: whole, cut and lying files, made here."""

import json

from minillama.course.exercise import Wrong, close

HINTS = {
    "header": (
        "The first 8 bytes are a number, lowest byte first; the JSON starts behind them.",
        "The header holds one key that is no tensor, and not every file has it.",
        "What is left for tensors: the file without the 8 bytes and without the header.",
    ),
    "short": (
        "Python cuts a slice that is too long without a word: compare the lengths yourself, before you read JSON.",
        "Two ways to be too short: no room for the 8 bytes, or for the header that they promise.",
    ),
    "shape": (
        "How many numbers a tensor has is the product of its shape; of an empty shape that is 1.",
        "Times the bytes per number of its dtype; that must be exactly end - begin.",
    ),
    "place": (
        "A tensor can have the right size and lie outside the file: look at both ends.",
        "begin must not be below 0, and end must not be above data_bytes.",
    ),
}

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
        "one": {"dtype": "F64", "shape": [], "data_offsets": [34, 42]},
        "none": {"dtype": "I8", "shape": [0, 7], "data_offsets": [42, 42]}}


def _file(entries, data_bytes):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def check_header(learner):
    for extra, hint in (({}, 0), ({"__metadata__": {"format": "pt"}}, 1)):
        got = learner.read_header(_file({**extra, **GOOD}, 42))
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"read_header returned a {type(got).__name__}: return (entries, data_bytes)", 2)
        close("the entries", got[0], GOOD, 0.0, hint=hint)
        close("data_bytes", got[1], 42, 0.0, hint=2)
    close("a file without tensors", learner.read_header(_file({}, 0)), ({}, 0), 0.0, hint=2)


def check_short(learner):
    whole = _file(GOOD, 0)
    files = {"an empty file": b"", "five bytes": whole[:5], "a header cut by one byte": whole[:-1],
             "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}"}
    for name, data in files.items():
        try:
            got = learner.read_header(data)
        except NotImplementedError:
            raise
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                raise Wrong(f"{name}: the JSON was read before the length was compared", 0) from None
            continue
        raise Wrong(f"{name} was accepted: {got!r:.60}", 1)


def _check(learner, name, hint, data_bytes=42, **changes):
    entries = {key: dict(entry) for key, entry in GOOD.items()}
    entries.get(name, {}).update(changes)
    said = f"{name} with {changes}" if changes else "a file in order"
    close(f"wrong_tensor of {said}", learner.wrong_tensor(entries, data_bytes), name, 0.0, hint=hint)


def check_shape(learner):
    _check(learner, None, 0)
    _check(learner, "a", 0, shape=[2, 4])
    _check(learner, "a", 1, shape=[5, 1])
    _check(learner, "b", 1, dtype="F32")
    _check(learner, "one", 0, shape=[0])
    _check(learner, "a", 0, shape=[10**9, 10**9])
    two = {**GOOD, "b": {**GOOD["b"], "shape": [6]}, "one": {**GOOD["one"], "shape": [2]}}
    close("of two wrong ones, the first", learner.wrong_tensor(two, 42), "b", 0.0, hint=0)


def check_place(learner):
    _check(learner, "one", 0, data_bytes=41)
    _check(learner, "a", 0, data_offsets=[40, 64])
    _check(learner, "a", 1, data_offsets=[-24, 0])


WRONG = [
    ('data[:8], "little"', 'data[:8], "big"', "header", 0),
    ('    entries.pop("__metadata__", None)\n', "", "header", 1),
    ("len(data) - 8 - length", "len(data) - length", "header", 2),
    ("len(data) < 8 or 8 + length > len(data)", "len(data) < 8", "short", 0),
    ("len(data) < 8 or 8 + length > len(data)", "8 + length > len(data) + 8", "short", 0),
    ('math.prod(entry["shape"])', 'sum(entry["shape"])', "shape", 0),
    (' * BYTES[entry["dtype"]]', " * 4", "shape", 0),
    ("end <= data_bytes or", "end or", "place", 0),
    ("not 0 <= begin <= end", "not begin <= end", "place", 1),
    ("len(data) - 8 - length", "len(data) - 8", "header", 2),
    ("end - begin != needed", "end - begin < needed", "shape", 1),
    ("in entries.items()", "in reversed(entries.items())", "shape", 0),
    ("<= begin <= end <= data_bytes", "<= begin <= data_bytes", "place", 0),
]
