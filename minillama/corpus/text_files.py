"""Your own files and folders as documents: checked, bounded, in a fixed order, without duplicates.

Nothing is guessed: a file that is not UTF-8 text is reported with its place, not repaired. Memory stays bounded, since
files are read line by line and a long file becomes several documents, cut at line ends. Every command that takes
--text reads it here.
"""

import codecs
import hashlib
import os
from pathlib import Path

from minillama.config_checks import Range, check

SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".js", ".html", ".css", ".json", ".csv", ".tex")
LONGEST_LINE = 1 << 20  # bytes; a longer one is read in such pieces
DOCUMENT_BYTES = 1 << 18  # a document ends at the first line end after so many bytes
LARGEST_FILE = 1 << 40  # bytes; a file of holes may claim far more than there is


def read_documents(paths, suffixes=SUFFIXES):
    """Yield documents (non-empty strings, line ends as "\\n") from files and folders, exact repeats left out.

    Folders are read with all their subfolders in the order of names, taking files with one of `suffixes` and passing
    over hidden ones and symbolic links; a file named directly is read whatever its suffix. ValueError in one line,
    `file:line: what`, for bytes that are not UTF-8, for binary files, for what is no regular file and for sizes over
    the bound.
    """
    seen = set()
    for path in files_below(paths, suffixes):
        for text in _documents_of(path):
            digest = _digest(text)
            if digest not in seen:
                seen.add(digest)
                yield text


def files_below(paths, suffixes=SUFFIXES):
    """Yield the files that these paths mean: a file itself, a folder all its text files, as `read_documents` says."""
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            yield path
            continue
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if file.suffix.lower() in suffixes and not name.startswith(".") and not file.is_symlink():
                    yield file


def check_texts(paths):
    """Read all these files, and refuse at once what `read_documents` would refuse on its way, or no text at all."""
    if not sum(bool(block.strip()) for path in files_below(paths) for block in _blocks(path)):
        raise ValueError(f"{', '.join(map(str, paths))}: no text in there: give files with text, or folders with files "
                         f"that end in {' '.join(SUFFIXES)}")


def _documents_of(path):
    text = ""
    for block in _blocks(path):
        text += block
        while end := text.find("\n", DOCUMENT_BYTES - 1) + 1:
            yield text[:end]
            text = text[end:]
        if len(text) > LONGEST_LINE:
            end = text.rfind(" ") + 1 or len(text)
            yield text[:end]
            text = text[end:]
    if text.strip():
        yield text


def _blocks(path):
    """The decoded text of a file in pieces; errors name the line and the byte, counted from 1 and from 0."""
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path}: {size} bytes, more than the {LARGEST_FILE} allowed: split it up")
    line, offset, rest, more = 1, 0, b"", True
    with open(path, "rb") as file:
        while more:
            data = rest + (more := file.read(DOCUMENT_BYTES))
            whole = data[:-1] if more and data.endswith(b"\r") else data  # its line feed may come in the next piece
            text, used = _decode(whole, path, line, offset, final=not more)
            yield text.removeprefix("" if offset else "\ufeff").replace("\r\n", "\n")
            line, offset, rest = line + data.count(b"\n", 0, used), offset + used, data[used:]


def _decode(data, path, line, offset, final):
    """(text, how many bytes it took)"""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}:1: UTF-16 text, and UTF-8 is read: convert the file (iconv -f UTF-16 -t UTF-8)")
    try:
        place, what = data.find(0), "a zero byte at offset {}: a binary file (or UTF-16), not UTF-8 text"
        if place < 0:
            return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        place, why = error.start, error.reason
        what = f"byte 0x{data[place]:02x} at offset {{}} is not UTF-8 ({why}): convert the file first"
    raise ValueError(f"{path}:{line + data.count(10, 0, place)}: {what.format(offset + place)}")


def normalised(text):
    """Lower case, every run of white space one space: what two near-identical copies share."""
    return " ".join(text.lower().split())


def split(documents, one_in=20, say=print):
    """(train, held-out) lists: a document is held out if the hash of its normalised text says so (one in `one_in`).

    The side depends on the text alone, not on its place or on the other documents: adding files never moves a document
    across, and copies that differ in case or spacing fall on one side (only the first of them is kept). Where a side
    would stay empty, the end of the text is held out (`sides`).
    """
    check("one_in", one_in, int, Range(2))  # or nothing is left to train on
    first = {}
    for text in documents:
        first.setdefault(_digest(normalised(text)), text)
    chosen = {text for digest, text in first.items() if int.from_bytes(digest[:8], "big") % one_in == 0}
    parts = [], []
    for text, held_out in sides(first.values(), chosen.__contains__, 1 / one_in, say):
        parts[held_out].append(text)
    return parts


def sides(documents, is_held_out, fraction, say):
    """Yield (document, whether it is held out), as `is_held_out(document)` decides, each side in its order.

    Where that leaves one side empty, as it must of a single document, the others are trained on and the end of the last
    is held out: `fraction` of all characters, at most half of the document; `say` is told in a line.
    """
    characters, waiting, found = 0, [], set()  # documents wait until both sides have one, of many some twenty
    for text in documents:
        characters += len(text)
        waiting.append((text, is_held_out(text)))
        found.add(waiting[-1][1])
        if len(found) == 2:
            yield from waiting
            waiting = []
    if len(found) == 2:
        return
    yield from ((text, False) for text, _ in waiting[:-1])
    begin, end = _cut(waiting[-1][0] if waiting else "", int(characters * fraction))
    say(f"too few documents to hold some out: the last {len(end)} of {characters} characters are held out")
    yield from ((begin, False), (end, True))


def _cut(text, held_out):
    """A text cut in two before its last `held_out` characters, or up to as many earlier, at a line end or a space."""
    length = len(text.rstrip())
    held_out = max(1, min(held_out, length // 2))
    place, earliest = length - held_out, max(0, length - 2 * held_out)
    cut = text.rfind("\n", earliest, place) + 1 or text.rfind(" ", earliest, place) + 1 or place
    if not text[:cut].strip():
        raise ValueError(f"{len(text)} characters are too few to learn from and to hold some out: give more text")
    return text[:cut], text[cut:]


def _digest(text):
    return hashlib.sha256(text.encode("utf-8")).digest()
