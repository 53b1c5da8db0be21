"""Benchmarks as they lie on disk: JSON, JSONL, CSV, parquet and plain text files -> rows, each with its place.

A benchmark NAME is a folder DIR/NAME, or one file DIR/NAME.jsonl (or another suffix). In a folder, a file belongs to a
split if a part of its path says so (`dev`, `val_000`, `accountant_val`, `test/`); a benchmark of many subjects has one
or more files for each. Labels that come apart, as `valid-labels.lst` beside `valid.jsonl`, are put into the rows. What
is wrong with a file is one line that names file, line, value and what is allowed.
"""

import csv
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

from minillama.system.files import require_regular
from minillama.system.terminal import one_line
from minillama.train.records import LARGEST_FILE, LONGEST_RECORD, json_values

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")  # of a split in several forms the first is read
SPLITS = {"train": "train", "dev": "dev", "val": "val", "valid": "val", "validation": "val", "test": "test"}
csv.field_size_limit(LONGEST_RECORD)  # of a cell
NO_HEADER = ("question", "A", "B", "C", "D", "answer")  # the columns of MMLU's files
HEADERS = {"question", "question_stem", "goal", "sentence", "context", "label", "endings", "text", "page"}
LISTS = ("choices", "endings")  # fields that hold no text, and stand in a cell of a CSV as JSON
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


class Row(NamedTuple):
    """What stands in one place of a file: its fields, the place as FILE:LINE, and the subject that its path tells."""

    fields: dict
    place: str
    subject: str = ""


def read_split(folder, name, splits):
    """The `Row`s of the first of `splits` that benchmark `name` has below `folder`; [] where it has none of them.

    ValueError where the benchmark is not there, or a file of it cannot be read.
    """
    home, found = Path(folder) / name, {}
    files = sorted(path for path in home.rglob("*") if path.suffix in SUFFIXES and not any(
        part.startswith(".") for part in path.relative_to(home).parts)) if home.is_dir() else [
        path for path in (home.with_name(name + suffix) for suffix in SUFFIXES) if path.exists()][:1]
    if not files:
        raise ValueError(f"{home}: no such benchmark: put its files there ({', '.join(SUFFIXES)}), or give --data the "
                         f"folder that holds {name}/")
    for path in files:
        split = split_of(path.relative_to(folder)) if home.is_dir() else splits[0]
        found.setdefault(split, []).append(path)
    for split in splits:
        if split in found:
            return [row for path in _one_form(found[split]) for row in read_rows(path, subject_of(path, name))]
    return []


def split_of(path):
    """The split that the last telling part of a path names; "" where none does."""
    words = [word for part in path.with_suffix("").parts for word in re.split(r"[^a-z]+", part.lower())]
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "")


def subject_of(path, name):
    """val/accountant_val.csv -> accountant; anatomy/test-00000-of-00001.parquet -> anatomy; a single file -> ""."""
    stem = re.sub(rf"(^|[_-])({'|'.join(SPLITS)})$", "", SHARD.sub("", path.stem), flags=re.IGNORECASE)
    stem = stem or path.parent.name
    return "" if stem in (name, "all", "data", *SPLITS) else stem


def _one_form(paths):
    """The files of one suffix, one for each subject or shard."""
    suffix = next(suffix for suffix in SUFFIXES if any(path.suffix == suffix for path in paths))
    return [path for path in paths if path.suffix == suffix]


def read_rows(path, subject=""):
    """All `Row`s of a file, with the labels from beside it."""
    require_regular(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {LARGEST_FILE} that are read at once")
    read = {".csv": _csv_rows, ".parquet": _parquet_rows, ".txt": _text_row}.get(path.suffix, _json_rows)
    rows = [Row(fields, f"{path}:{line}", subject) for line, fields in read(path)]
    labels = path.with_name(path.stem + "-labels.lst")
    return _with_labels(rows, labels) if labels.exists() else rows


def _json_rows(path):
    for line, value in json_values(path):
        if isinstance(value, ValueError):
            raise ValueError(f"{path}:{line}: {value}")
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{line}: {short(value)} is {type(value).__name__}: a question is an object")
        yield line, value


def _text_row(path):
    yield 1, {"text": decoded(path)}


def _csv_rows(path):
    reader = csv.reader(io.StringIO(decoded(path), newline=""), strict=True)
    names, line = None, 1
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            if not cells:  # an empty line
                continue
            if names is None and not HEADERS.isdisjoint(cell.strip().lower() for cell in cells):
                names = cells
                if twice := next((name for name in names if names.count(name) > 1), None):
                    raise ValueError(f"{path}:{begun}: two columns are called {short(twice)}: keep one")
                continue
            names = names or NO_HEADER
            if len(cells) != len(names):
                raise ValueError(f"{path}:{begun}: {len(cells)} cells, beginning with {short(cells[:1])}: expected "
                                 f"{len(names)}: {', '.join(names)}")
            yield begun, {name: _list_in(cell) if name in LISTS else cell
                          for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: no CSV ({error}): quote cells that hold commas or quotes") from None


def _list_in(cell):
    """The list or object that a cell holds as JSON; the cell where it holds none."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def decoded(path):
    """A whole file of UTF-8; ValueError naming the line of a byte that is none."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: convert the file") from None


def _parquet_rows(path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: parquet is read by pyarrow, which is not installed: `pip install pyarrow`, or "
                         "give the file as JSONL") from None
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no parquet file ({one_line(str(error))[:80]}): fetch it again") from None


def _with_labels(rows, path):
    labels = decoded(require_regular(path)).split()
    if len(labels) != len(rows):
        raise ValueError(f"{path}: {len(labels)} labels for {len(rows)} questions: give one on each line")
    return [row._replace(fields={"label": label, **row.fields}) for row, label in zip(rows, labels, strict=True)]


def short(value):
    """A value as an error shows it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text if len(text) <= 40 else text[:37] + "...")
