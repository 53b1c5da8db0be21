"""Examples to fine-tune on: the user's JSON or JSONL in Alpaca or conversation form, and a procedural forum.

    Alpaca          {"instruction": str, "input": str (may be absent), "output": str}
    conversation    {"messages": [{"role": "system" | "user" | "assistant", "content": str}, ...]}
    ShareGPT        {"conversations": [{"from": "system" | "human" | "gpt", "value": str}, ...]}

A file is one JSON array of such objects, or JSONL: one object a line. Nothing is dropped unseen: a bad record is an
error of one line that names file, line and field, or with `skip_bad` a line in `skipped`; fields that are not used
are counted.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from minillama.corpus import forum
from minillama.system.files import require_regular
from minillama.system.terminal import one_line
from minillama.train.chat_template import template_function
from minillama.train.sequence_loss import IGNORE, Sequence, encode_segments
from minillama.train.templates import alpaca

LARGEST_FILE = 1 << 30  # bytes
LONGEST_RECORD = 1 << 20  # bytes of JSON
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
         "chatgpt": "assistant", "bot": "assistant"}
SPACE = re.compile(r"[ \t\r\n]*")  # what JSON takes for it
SURROGATE = re.compile("[\ud800-\udfff]")
WANTED = "instruction and output (Alpaca), messages (role, content), or conversations (from, value)"


@dataclass(frozen=True)
class Record:
    """One example. messages: as the templates take them, maybe a system text, then user and assistant in turn, the
    last from the assistant. input: Alpaca's text to work on, kept apart from the instruction. ignored: which of the
    assistant's messages are not learned, by their numbers: those whose weight is 0."""

    messages: tuple
    input: str = ""
    ignored: frozenset = frozenset()

    @property
    def question(self):
        """What the user asks first."""
        return next(message["content"] for message in self.messages if message["role"] == "user")


@dataclass(frozen=True)
class Records:
    """What a file held: records, {field: in how many records it stood unused}, one line for each bad record, and for
    each record (its line, the object as it stood there)."""

    records: list
    unused: dict
    skipped: list
    objects: list = field(default_factory=list, compare=False)

    def summary(self):
        """One sentence with all counts."""
        unused = ", ".join(f"{one_line(name)} ({count})" for name, count in sorted(self.unused.items()))
        return (f"{len(self.records)} records, {len(self.skipped)} bad ones skipped"
                + (f", fields not used: {unused}" if unused else ""))


def read_records(path, skip_bad=False):
    """Read a JSON or JSONL file, told apart by its first character -> `Records`.

    ValueError, `file:line: what`, for the first bad record; with skip_bad they are left out and listed. A file that
    is too large, no UTF-8, or holds no good record is an error in any case.
    """
    path, records, unused, skipped, objects = Path(path), [], Counter(), [], []
    for line, made in json_values(path):
        try:
            if isinstance(made, ValueError):
                raise made
            record, names = _record(made)
        except ValueError as error:
            message = f"{path}:{line}: {error}"
            if not skip_bad:
                raise ValueError(message) from None
            skipped.append(one_line(message))
            continue
        records.append(record)
        objects.append((line, made))
        unused.update(names)
    if not records:
        raise ValueError(f"{path}: no record to learn from{f'; {skipped[0]}' if skipped else ''}: give {WANTED}")
    return Records(records, dict(unused), skipped, objects)


def _text(path):
    size = require_regular(path).stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{path}: {size} bytes, more than the {LARGEST_FILE} that are read at once: split the file")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: convert the file") from None


def json_values(path):
    """(line, parsed value, or the ValueError in its place) of every element of a JSON array or line of JSONL. Only a
    slip between two elements of an array, behind which nothing can be found again, is raised."""
    text = _text(Path(path))
    if not text.lstrip().startswith("["):
        for line, part in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a string
            if part.strip():
                yield line, _too_long(part) or _parse_json(part)
        return
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        place = SPACE.match(text, place).end()
        line, counted = line + text.count("\n", counted, place), place
        if text[place:place + 1] == "]" and not text[place + 1:].strip():
            return
        try:
            value, place = DECODER.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}:{line}: the array is broken in or behind this record ({error})") from None
        except ValueError as error:  # a field given twice: the text around it is whole
            value, place = error, PLAIN.raw_decode(text, place)[1]
        yield line, _too_long(text[counted:place]) or value
        place = SPACE.match(text, place).end()
        if text[place:place + 1] == ",":
            place += 1
        elif text[place:place + 1] != "]":
            raise ValueError(f"{path}:{line}: a comma or the closing ] is missing behind this record")


def _too_long(text):
    """The ValueError for a record of more than LONGEST_RECORD, else None."""
    if len(text) > LONGEST_RECORD or len(text.encode()) > LONGEST_RECORD:
        return ValueError(f"a record of more than {LONGEST_RECORD} bytes: cut it, or make several of it")
    return None


def _once(pairs):
    fields = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"field {name!r} is given twice: keep one")
        fields[name] = value
    return fields


DECODER, PLAIN = json.JSONDecoder(object_pairs_hook=_once), json.JSONDecoder()


def _parse_json(text):
    try:
        return DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return ValueError(f"not JSON ({error}): JSONL has one whole object a line, and an array begins with [")
    except ValueError as error:
        return error


def _record(value):
    """(Record, names of fields that were not used); ValueError naming the field."""
    if not isinstance(value, dict):
        raise ValueError(f"a record is an object, not {type(value).__name__}: give {WANTED}")
    if "instruction" in value:
        messages = [("user", text_field(value, "instruction")), ("assistant", text_field(value, "output"))]
        text, used = text_field(value, "input", optional=True), {"instruction", "input", "output"}
        return Record(_messages(messages), text), value.keys() - used
    name = next((name for name in ("messages", "conversations") if name in value), None)
    if name is None:
        raise ValueError(f"fields {sorted(value)} are of no known form: give {WANTED}")
    if not isinstance(value[name], list) or not value[name]:
        raise ValueError(f"field {name!r} must be a list of messages, and not an empty one")
    turns = [_turn(turn, f"{name}[{i}]") for i, turn in enumerate(value[name])]
    used = {"role", "content", "from", "value", "weight"}
    inner = {f"{name}[].{key}" for turn in value[name] for key in turn.keys() - used}
    _check_order([role for role, _ in turns], name)
    weights = [_weight(turn, f"{name}[{i}]") for i, turn in enumerate(value[name]) if turns[i][0] == "assistant"]
    if not any(weights):
        raise ValueError(f"field {name!r} gives every answer the weight 0: nothing would be learned from it")
    ignored = frozenset(number for number, weight in enumerate(weights) if weight == 0)
    return Record(_messages(turns), ignored=ignored), (value.keys() - {name}) | inner


def _weight(turn, place):
    weight = turn.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"field '{place}.weight' is {weight!r}: 0 (not learned) and 1 are known")
    return weight


def _turn(turn, place):
    if not isinstance(turn, dict):
        raise ValueError(f"{place} is {type(turn).__name__}, not an object with role and content, or from and value")
    who, what = ("from", "value") if "from" in turn else ("role", "content")
    if not isinstance(turn.get(who), str) or turn[who] not in ROLES:
        raise ValueError(f"field '{place}.{who}' is {turn.get(who)!r}: expected one of {', '.join(ROLES)}")
    return ROLES[turn[who]], text_field(turn, what, place=place + ".")


def _check_order(roles, name):
    rest = roles[1:] if roles[0] == "system" else roles
    if not rest or rest != ["user", "assistant"] * (len(rest) // 2):
        raise ValueError(f"field {name!r} has the roles {roles}: expected maybe system, then user and assistant in "
                         "turn, ending with assistant")


def text_field(fields, name, optional=False, place=""):
    """The text of a field; blank is an error unless it is optional, then absent is allowed as well."""
    if name not in fields and not optional:
        raise ValueError(f"field '{place}{name}' is missing")
    text = fields.get(name, "")
    if not isinstance(text, str):
        raise ValueError(f"field '{place}{name}' is {type(text).__name__}, not a string")
    if not text.strip():
        if optional:
            return ""
        raise ValueError(f"field '{place}{name}' is blank")
    if not text.isascii() and SURROGATE.search(text):
        raise ValueError(f"field '{place}{name}' holds half a surrogate pair, which is no character")
    return text


def _messages(turns):
    return tuple({"role": role, "content": content} for role, content in turns)


def segments_of(record, template, tokenizer=None):
    """The record in the wording of the template of that name, as segments. An Alpaca input stands in its own place in
    Alpaca's template, behind the instruction and an empty line in all others."""
    segments = template_function(template, tokenizer)
    first, rest = record.messages[0], record.messages[1:]
    if record.input and template == "alpaca":
        return alpaca(first["content"], record.input, rest[0]["content"])
    if record.input:
        first = first | {"content": f"{first['content']}\n\n{record.input}"}
    return _without(record.ignored, segments([first, *rest]))


def _without(ignored, segments):
    """The segments, with those answers not learned; an answer is a run of learned segments."""
    if not ignored:
        return segments
    number, before, kept = -1, False, []
    for segment in segments:
        number += segment.learn and not before
        before = segment.learn
        kept.append(replace(segment, learn=segment.learn and number not in ignored))
    return kept


@dataclass(frozen=True)
class Encoded:
    """Sequences to train on, and how many records were cut at the end or left out for their length."""

    sequences: list
    cut: int
    left_out: int


def encode_records(records, template, tokenizer, max_length):
    """Records as `Sequence`s of at most `max_length` tokens -> `Encoded`.

    A longer one is cut at its end and keeps what is learned before the cut (Alpaca's program does so too); one whose
    first answer lies behind the cut has no trainable token and is left out. ValueError if all are.
    """
    sequences, cut, left_out = [], 0, 0
    for record in records:
        whole = encode_segments(segments_of(record, template, tokenizer), tokenizer)
        sequence = Sequence(whole.tokens[:max_length], whole.labels[:max_length])
        if sequence.labels.count(IGNORE) == len(sequence.labels):
            left_out += 1
            continue
        cut += len(whole.tokens) > max_length
        sequences.append(sequence)
    if not sequences:
        raise ValueError(f"none of {left_out} records has an answer that begins within {max_length} tokens: "
                         "raise max_length, or choose a model of a longer context")
    return Encoded(sequences, cut, left_out)


def forum_records(seed, n, split="train"):
    """`n` questions of the forum with one answer each, drawn from a stream of random numbers of their own."""
    rng, records = random.Random(f"forum records {split} {seed}"), []
    for _ in range(n):
        question = forum.GRAMMAR.sample(rng, "{question}")
        answer = forum.GRAMMAR.sample(rng, "{answer}", question.chosen)
        records.append(Record(_messages([("user", question.text), ("assistant", answer.text)])))
    return records
