"""GGUF files, as llama.cpp and its many relatives use them: settings, tokenizer and tensors in one file.

    "GGUF", uint32 version, uint64 number of tensors, uint64 number of settings
    the settings: key, uint32 kind of value, value; a string is its uint64 length and UTF-8
    the tensors: name, uint32 number of axes, uint64 sizes (columns first), uint32 type, uint64 offset
    padding, then the tensors' bytes; offsets count from here and are multiples of `general.alignment`

Little-endian; versions 2 and 3 are laid out alike. Sizes are checked against what is left of the file before anything
is made from them.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import functools
import math
import os
import struct

import torch

from minillama.checkpoint.gguf_blocks import BLOCKS, UNREAD
from minillama.checkpoint.weights import Stored
from minillama.system.files import atomic_write
from minillama.system.snapshot import open_snapshot

MAGIC, VERSION, VERSIONS, ALIGNMENT = b"GGUF", 3, (2, 3), 32
STRING, ARRAY, BOOL = 8, 9, 7
# kind of value -> struct letter
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
MAX_AXES = 4
PIECE = 2**14  # blocks that are decoded at once
LEAST_SETTING, LEAST_TENSOR = 13, 24  # bytes that the smallest setting and the smallest tensor entry take


class Cursor:
    """Reads forward through the file's bytes, and never past their end."""

    def __init__(self, data, path):
        self.data, self.path, self.at = data, path, 0

    def take(self, count, what):
        """The next `count` bytes; ValueError, naming what was wanted, if there are fewer."""
        if count > len(self.data) - self.at:
            raise ValueError(f"{self.path}: {what} takes {count} bytes at byte {self.at}, {len(self.data) - self.at} "
                             "are left: cut short, or damaged")
        self.at += count
        return self.data[self.at - count:self.at]

    def numbers(self, letter, what, count=1):
        width = struct.calcsize("<" + letter)
        if letter == "?":  # any byte but 0 and 1 would be a lie
            raw = bytes(self.take(count, what))
            if raw.strip(b"\0\1"):
                raise ValueError(f"{self.path}: {what} holds a truth value that is neither 0 nor 1: damaged")
            return tuple(map(bool, raw))
        return struct.unpack(f"<{count}{letter}", self.take(width * count, what))

    def text(self, what):
        length, = self.numbers("Q", what)
        try:
            return bytes(self.take(length, what)).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is not UTF-8: damaged") from None

    def value(self, kind, what):
        """A setting's value of the given kind; arrays become lists, and do not nest."""
        if kind == STRING:
            return self.text(what)
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind], what)[0]
        if kind != ARRAY:
            raise ValueError(f"{self.path}: {what} has values of kind {kind}: known are 0 to 12")
        (kind,), (count,) = self.numbers("I", what), self.numbers("Q", what)
        if kind in NUMBERS:
            return list(self.numbers(NUMBERS[kind], what, count))
        if kind != STRING or count > (len(self.data) - self.at) // 8:
            raise ValueError(f"{self.path}: {what} is an array of {count} values of kind {kind}: damaged, or not known")
        return [self.text(what) for _ in range(count)]


def read_gguf(path):
    """({key: value}, {name: Stored}) of the file, memory-mapped: blocks are decoded when a tensor is read.

    ValueError for a damaged file, another version, or tensors of a type that is not read here.
    """
    with open_snapshot(path) as (file, again):
        size = os.fstat(file.fileno()).st_size
        content = torch.from_file(again, shared=False, size=size, dtype=torch.uint8)
    cursor = Cursor(memoryview(content.numpy()), path)
    if bytes(cursor.take(4, "the mark")) != MAGIC:
        raise ValueError(f"{path}: does not begin with 'GGUF': another kind of file")
    version, = cursor.numbers("I", "the version")
    if version & 0xFFFF == 0 < version:
        raise ValueError(f"{path}: a big-endian GGUF, made for another kind of computer: fetch the little-endian "
                         f"one, or turn it, `pip install gguf` and `gguf-convert-endian {path} little`")
    if version not in VERSIONS:
        raise ValueError(f"{path}: GGUF version {version}: read here are 2 and 3; fetch a newer file of the model, or "
                         "convert it again from the original")
    n_tensors, n_settings = cursor.numbers("Q", "the counts", 2)
    if n_tensors * LEAST_TENSOR + n_settings * LEAST_SETTING > size:
        raise ValueError(f"{path}: {n_tensors} tensors and {n_settings} settings do not fit in {size} bytes: damaged")
    settings = {}
    for _ in range(n_settings):
        key = cursor.text("a setting's name")
        kind, = cursor.numbers("I", key[:80])
        settings[key] = cursor.value(kind, key[:80])
    entries = [_entry(cursor) for _ in range(n_tensors)]
    alignment = settings.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 65536 or alignment & (alignment - 1):
        raise ValueError(f"{path}: general.alignment is {alignment!r}: expected a power of two from 8 to 65536")
    start = min(cursor.at + -cursor.at % alignment, size)
    return settings, _tensors(content[start:], entries, alignment, path)


def _entry(cursor):
    """(name, shape, type, offset, bytes) of one tensor; shape in torch's order."""
    name = cursor.text("a tensor's name")
    n_axes, = cursor.numbers("I", name[:80])
    if n_axes > MAX_AXES:
        raise ValueError(f"{cursor.path}: {name[:80]} has {n_axes} axes: at most {MAX_AXES}")
    shape = cursor.numbers("Q", name[:80], n_axes)[::-1]
    (kind,), (offset,) = cursor.numbers("I", name[:80]), cursor.numbers("Q", name[:80])
    if kind not in BLOCKS:
        known, word = ", ".join(block.name for block in BLOCKS.values()), UNREAD.get(kind, f"number {kind}")
        raise ValueError(f"{cursor.path}: {name[:80]} is of type {word}; read here are {known}: take such a file, or "
                         "make one, `llama-quantize --allow-requantize OLD.gguf NEW.gguf Q8_0`")
    block, count = BLOCKS[kind], math.prod(shape)
    if not shape or shape[-1] % block.numbers or not 0 < count < 2**48:
        raise ValueError(f"{cursor.path}: {name[:80]} has shape {list(shape)}: {block.name} wants rows that are "
                         f"multiples of {block.numbers}")
    return name, shape, block, offset, count // block.numbers * block.bytes


def _tensors(data, entries, alignment, path):
    """{name: Stored}, once every entry is known to lie inside the data, aligned, and clear of the others."""
    end, tensors = 0, {}
    for name, shape, block, offset, size in sorted(entries, key=lambda entry: entry[3]):
        if offset % alignment or offset < end or offset + size > len(data):
            raise ValueError(f"{path}: {name[:80]} lies at {offset} to {offset + size} of {len(data)} bytes; those "
                             f"before it end at {end}: cut short, or damaged")
        if name in tensors:
            raise ValueError(f"{path}: {name[:80]} occurs twice: damaged")
        end = offset + size
        read = functools.partial(_read, raw := data[offset:end], block, shape)
        tensors[name] = Stored(shape, block.dtype, read, made=block.numbers > 1, block=block, raw=raw)
    return tensors


def _read(raw, block, shape):
    """The numbers; those in blocks a piece at a time, so that what is made on the way stays small."""
    if block.numbers == 1:
        return block.decode(raw).view(shape)
    numbers = torch.empty(math.prod(shape), dtype=block.dtype)
    pieces = numbers.split(PIECE * block.numbers)
    for piece, packed in zip(pieces, raw.split(PIECE * block.bytes), strict=True):
        piece.copy_(block.decode(packed))
    return numbers.view(shape)


def write_gguf(path, settings, tensors):
    """Write {key: value} and [(name, shape, type number, function that makes the tensor)], a tensor at a time.

    A Python int is written as uint32, a float as float32; lists hold strings, floats or (as int32) ints.
    """
    head, offset = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(settings))], 0
    for key, value in settings.items():
        head += [_text(key), _value(value)]
    for name, shape, kind, _ in tensors:
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += [_text(name), sizes, struct.pack("<IQ", kind, offset)]
        size = math.prod(shape) // BLOCKS[kind].numbers * BLOCKS[kind].bytes
        offset += size + -size % ALIGNMENT
    with atomic_write(path) as file:
        file.write(b"".join(head))
        for _, _, kind, make in tensors:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            file.write(BLOCKS[kind].encode(make()).numpy().data)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value):
    """Kind and value of a setting."""
    if isinstance(value, list):
        kind = STRING if value and isinstance(value[0], str) else 6 if value and isinstance(value[0], float) else 5
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        return head + (b"".join(map(_text, value)) if kind == STRING else
                       struct.pack(f"<{len(value)}{NUMBERS[kind]}", *value))
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    kind = BOOL if isinstance(value, bool) else 4 if isinstance(value, int) else 6
    return struct.pack("<I" + NUMBERS[kind], kind, value)
