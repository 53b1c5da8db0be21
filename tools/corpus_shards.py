"""A corpus in pieces that several processes can read: documents of text files lie between empty lines, and of JSONL
files one on a line, as its "text"."""

import json
import os
import re
from dataclasses import dataclass

from minillama.corpus.text_files import files_below
from minillama.system.files import require_regular

SHARD_BYTES = 4 << 20
PIECE = 1 << 16  # bytes read at once on the way to the next document
LONGEST_DOCUMENT = 1 << 24  # bytes
SUFFIXES = (".txt", ".md", ".jsonl")
LINE_END, EMPTY_LINE = re.compile(rb"\n"), re.compile(rb"\n[ \t\r]*\n\s*")  # what lies between documents


@dataclass(frozen=True)
class Shard:
    """The documents of a file that lie within some bytes of it; it begins where a document does."""

    path: str
    begin: int
    end: int

    def documents(self):
        """Yield (byte offset, text). ValueError, `file: what`, for what is no UTF-8 or no JSON object with a text."""
        with open(self.path, "rb") as file:
            file.seek(self.begin)
            data = file.read(self.end - self.begin)
        place = 0
        while place < len(data):
            found = between_documents(self.path).search(data, place)
            stop, following = found.span() if found else (len(data), len(data))
            if data[place:stop].strip():
                yield self.begin + place, self._text(data[place:stop], self.begin + place)
            place = following

    def _text(self, data, offset):
        where = f"{self.path}: the document at byte {offset}"
        try:
            text = data.decode("utf-8").removeprefix("\ufeff")
            if self.path.endswith(".jsonl"):
                text = json.loads(text)["text"]
                if not isinstance(text, str):
                    raise TypeError
                text.encode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{where} is not UTF-8: convert the file first") from None
        except UnicodeEncodeError:
            raise ValueError(f"{where} holds half a surrogate pair: repair it") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f'{where} is no JSON object with a "text": give one such object a line') from None
        if "\0" in text:
            raise ValueError(f"{where} holds a zero byte: give text, not a binary file")
        return text.replace("\r\n", "\n").strip()


def between_documents(path):
    """The pattern of what lies between two documents of a file."""
    return LINE_END if path.endswith(".jsonl") else EMPTY_LINE


def cut_into_shards(paths):
    """All files of these paths, in pieces of about SHARD_BYTES that begin and end with documents."""
    shards = []
    for path in map(str, map(require_regular, files_below(paths, SUFFIXES))):
        begin, size = 0, os.path.getsize(path)
        with open(path, "rb") as file:
            while begin < size:
                end = _next_document(file, path, begin + SHARD_BYTES, size)
                shards.append(Shard(path, begin, end))
                begin = end
    return shards


def _next_document(file, path, place, size):
    """Where the first document begins whose place in the file is behind `place`, or the end of the file."""
    data = b""
    file.seek(place)
    while more := file.read(PIECE):
        data += more
        found = between_documents(path).search(data)
        if found and found.end() < len(data):  # all that lies between is there
            return place + found.end()
        if len(data) > LONGEST_DOCUMENT:
            raise ValueError(f"{path}: the document at byte {place} is longer than {LONGEST_DOCUMENT} bytes: put empty "
                             "lines between documents")
    return size


def read_shards(paths):
    """Yield the texts of all documents of files and folders."""
    for shard in cut_into_shards(paths):
        yield from (text for _, text in shard.documents())
