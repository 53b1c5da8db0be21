"""Your own files and folders as documents: checked, bounded, in a fixed order, without duplicates.

Nothing is guessed: a file that is not UTF-8 text is reported with its place, not repaired. Memory stays bounded, since
files are read line by line and a long file becomes several documents, cut at line ends.
"""

import hashlib
import os
from pathlib import Path

SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".js", ".html", ".css", ".json", ".csv", ".tex")
LONGEST_LINE = 1 << 20  # bytes; a longer one is no line of text
DOCUMENT_BYTES = 1 << 18  # a document ends at the first line end after so many bytes
LARGEST_FILE = 1 << 30  # bytes


def read_documents(paths, suffixes=SUFFIXES, largest_file=LARGEST_FILE, skipped=None):
    """Yield documents (non-empty strings, line ends as "\\n") from files and folders, exact repeats left out.

    Folders are read with all their subfolders in the order of names, taking files with one of `suffixes` and passing
    over hidden ones and symbolic links; a file named directly is read whatever its suffix. ValueError in one line,
    `file:line: what`, for bytes that are not UTF-8, for binary files and for sizes over the bounds; given a list
    `skipped`, the rest of such a file is passed over and the line appended to the list instead.
    """
    seen = set()
    for path in files_below([paths] if isinstance(paths, (str, os.PathLike)) else paths, suffixes):
        try:
            for text in _documents_of(path, largest_file):
                digest = _digest(text)
                if digest not in seen:
                    seen.add(digest)
                    yield text
        except ValueError as error:
            if skipped is None:
                raise
            skipped.append(str(error))


def files_below(paths, suffixes=SUFFIXES):
    """Yield the files that these paths mean: a file itself, a folder all its text files, as `read_documents` says."""
    for path in map(Path, paths):
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


def _documents_of(path, largest_file):
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    size = path.stat().st_size
    if size > largest_file:
        raise ValueError(f"{path}: {size} bytes, more than the {largest_file} allowed; pass largest_file={size}")
    lines, held = [], 0
    for line in _lines(path):
        lines.append(line)
        held += len(line)
        if held >= DOCUMENT_BYTES:
            yield "".join(lines)
            lines, held = [], 0
    if "".join(lines).strip():
        yield "".join(lines)


def _lines(path):
    """Decoded lines of a file; the errors name the line and the byte, both counted as editors do (line 1, byte 0)."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path}:{number}: a line of more than {LONGEST_LINE} bytes; break it up first")
            if b"\0" in line:
                raise ValueError(f"{path}:{number}: a zero byte at offset {offset + line.index(0)}: "
                                 "a binary file (or UTF-16), not UTF-8 text")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start + (3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0)
                raise ValueError(f"{path}:{number}: byte 0x{error.object[error.start]:02x} at offset {at} is not UTF-8 "
                                 f"({error.reason}); convert the file first") from None
            yield text.replace("\r\n", "\n")
            offset += len(line)


def normalised(text):
    """Lower case, every run of white space one space: what two near-identical copies share."""
    return " ".join(text.lower().split())


def split(documents, one_in=20):
    """(train, held-out) lists: a document is held out if the hash of its normalised text says so (one in `one_in`).

    The side depends on the text alone, not on its place or on the other documents: adding files never moves a document
    across, and copies that differ in case or spacing fall on one side (only the first of them is kept).
    """
    if one_in < 2:
        raise ValueError(f"one_in {one_in!r} is not allowed: at least 2, or nothing is left to train on")
    train, held_out, seen = [], [], set()
    for text in documents:
        digest = _digest(normalised(text))
        if digest not in seen:
            seen.add(digest)
            (held_out if int.from_bytes(digest[:8], "big") % one_in == 0 else train).append(text)
    return train, held_out


def _digest(text):
    return hashlib.sha256(text.encode("utf-8")).digest()
