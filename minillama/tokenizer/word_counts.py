"""From text to what a BPE trainer needs: the alphabet and how often each word occurs.

The steps are SentencePiece's, in its order: lines, normalisation (a space becomes U+2581), meta pieces cut out,
words, alphabet by coverage. The text is streamed; memory grows with the number of different words, not with the text.
"""

import codecs
import os
import re
import struct
from collections import Counter
from dataclasses import dataclass, field

SPACE = "\u2581"  # LOWER ONE EIGHTH BLOCK, the visible space of SentencePiece
RESERVED = "\u2585"  # SentencePiece's inner mark of a character outside the alphabet
BOUNDARY = "\x1f"  # stands where a meta piece stood; no piece may hold it
_WORD = re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
_BLOCK = 1 << 20
# How bytes that start no valid sequence are decoded: each is one U+FFFD, as in SentencePiece; Python's errors="replace"
# makes one mark of several.
EACH_BYTE = "minillama.each_byte"
codecs.register_error(EACH_BYTE, lambda error: ("\ufffd", error.start + 1))  # type: ignore[attr-defined]


@dataclass
class TrainingReport:
    """What a training run read, skipped and found."""

    lines: int = 0  # lines that took part
    long_lines: int = 0  # skipped: more bytes than max_line_bytes
    reserved_lines: int = 0  # skipped: they hold U+2585
    bytes: int = 0  # bytes of the lines that took part
    characters: int = 0  # characters of these lines, the dummy prefix of each line included
    alphabet: int = 0  # different characters that became pieces
    uncovered: int = 0  # occurrences of characters outside the alphabet: encoded as bytes or <unk>
    seconds: float = 0.0
    backend: str = "python"
    notes: list = field(default_factory=list)  # sentences for the user

    def finish_reading(self, max_line_bytes):
        """Put what was skipped into words; ValueError if nothing is left."""
        if self.long_lines:
            self.notes.append(f"{self.long_lines} lines of more than {max_line_bytes} bytes were skipped: "
                              "break them up, or raise max_line_bytes")
        if self.reserved_lines:
            self.notes.append(f"{self.reserved_lines} lines with the reserved character U+2585 were skipped")
        if not self.lines:
            raise ValueError("the corpus has no line to learn from: " + ("; ".join(self.notes) or "it is empty"))


def encode_utf8(text):
    """Text to UTF-8; a lone surrogate, which no UTF-8 can hold, is a ValueError that says where it stands."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds the lone surrogate {text[error.start]!r} at position {error.start}: "
                         "it is half a character; decode the source with errors='replace' first") from None


def sources_of(texts_or_files):
    """The given argument as a list or iterator of single texts (str, bytes) and files (os.PathLike)."""
    if isinstance(texts_or_files, (str, bytes)):
        raise TypeError("one str could be a text or a file name: pass pathlib.Path(...) for a file, "
                        "or a list [text] for a text")
    return [texts_or_files] if isinstance(texts_or_files, os.PathLike) else texts_or_files


def blocks_of(texts_or_files):
    """The corpus as (block, is_last_of_its_source): blocks of bytes, at most 1 MiB each when they come from files."""
    for source in sources_of(texts_or_files):
        if isinstance(source, os.PathLike):
            with open(source, "rb") as file:
                while block := file.read(_BLOCK):
                    yield block, False
            yield b"", True
        elif isinstance(source, str):
            yield encode_utf8(source), True
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield bytes(source), True
        else:
            raise TypeError(f"a corpus is made of str, bytes and pathlib.Path, not {type(source).__name__}")


def read_lines(texts_or_files, max_line_bytes, report):
    """Yield the lines (bytes, cut at b"\\n" only) that take part in training; count the ones that do not."""
    rest, too_long = b"", False
    for block, is_last in blocks_of(texts_or_files):
        lines = (rest + block).split(b"\n")
        rest = b"" if is_last else lines.pop()
        for line in lines:
            if too_long or len(line) > max_line_bytes:
                report.long_lines += 1
            elif RESERVED.encode() in line:
                report.reserved_lines += 1
            elif line:
                report.lines += 1
                report.bytes += len(line)
                yield line
            too_long = False
        if len(rest) > max_line_bytes:  # forget the beginning of an endless line: it will be skipped anyway
            rest, too_long = b"", True


def count_words(texts_or_files, meta_pieces, max_line_bytes, report, progress=None, line_end=""):
    """Count the words of all lines: runs of U+2581 with the characters that follow, e.g. "▁the" or "▁▁▁▁if".

    Each line gets a leading space (the dummy prefix); each occurrence of a meta piece's string is cut out, so that
    no piece is learnt from it. `progress` is called with the number of bytes of each line. line_end: put behind the
    last word of each line.
    """
    counts = Counter()
    longest_first = sorted(meta_pieces, key=lambda piece: (-len(piece), piece))
    meta = re.compile("|".join(map(re.escape, longest_first)))
    plain = not any("<" not in piece for piece in meta_pieces)  # a line without "<" then holds no meta piece
    for line in read_lines(texts_or_files, max_line_bytes, report):
        text = SPACE + line.decode("utf-8", EACH_BYTE).replace(" ", SPACE)
        report.characters += len(text)
        if not plain or "<" in text:
            text = meta.sub(BOUNDARY, text)
        counts.update(_WORD.findall(text + line_end))
        if progress:
            progress(len(line))
    return counts


def float32(number):
    """`number` rounded to the nearest 32-bit float."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


def choose_alphabet(word_counts, coverage):
    """The characters that become pieces, {character: count}, most frequent first, ties by code point.

    They are taken while those taken before cover less than `coverage` of all characters (compared as 32-bit floats,
    as SentencePiece does). The boundary uses up coverage but is not taken; NUL is not counted.
    """
    counts = Counter()
    for word, count in word_counts.items():
        for character in word:
            counts[character] += count
    counts.pop("\0", None)
    total, covered, alphabet = sum(counts.values()), 0, {}
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if float32(covered / total) >= float32(coverage):
            break
        covered += count
        if character != BOUNDARY:
            alphabet[character] = count
    return alphabet, total - covered
