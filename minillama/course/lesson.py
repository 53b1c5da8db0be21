"""Lessons: plain Python files, cut into cells at lines that begin with `# %%`, and run one cell after another.

    # %% [markdown] formula        the kind, and an id that is unique in its lesson
    # Prose in Markdown, every line a comment.
    # %% naive
    code

Terminal (stepper.py), notebook (notebook.py) and book (book.py) are three views of what this file reads and runs.
"""

import contextlib
import io
import json
import re
import sys
import time
import types
import typing
from pathlib import Path

from minillama import plots

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent if (PACKAGE.parent / "lessons" / "00_tour.py").is_file() else PACKAGE  # installed: inside it
FOLDER = ROOT / "lessons"
_PARTS = json.loads(Path(__file__).with_name("course.json").read_text(encoding="utf-8"))
COURSE = [name for names in _PARTS.values() for name in names]  # written or planned
NAMES = {int(name[:2]): name for name in COURSE}  # by number
PARTS = {part: [int(name[:2]) for name in names] for part, names in _PARTS.items()}  # numbers of a part's lessons
HEADER = ("Covers", "Needs", "Time", "Teaches", "Paper")  # lines of the first cell, in this order


def lessons(folder=FOLDER):
    """{number: path} of the lessons that are written."""
    return {int(path.name[:2]): path for path in sorted(Path(folder).glob("[0-9][0-9]_*.py"))}


def find(number, folder=FOLDER):
    """The file of a lesson; a number that is only planned, or none at all, is an error that says what there is."""
    written = lessons(folder)
    if number in written:
        return written[number]
    there = "written are " + (" ".join(f"{n:02}" for n in written) or "none")
    planned = [name for name in COURSE if int(name[:2]) == number]
    raise ValueError(f"lesson {planned[0]} is planned, not written yet: {there}" if planned else
                     f"there is no lesson {number}: {there}")


def number_of(text):
    """The number in `5`, `05`, `05_rms_norm` or `lessons/05_rms_norm.py`."""
    match = re.match(r"\d{1,2}(?=\D|$)", Path(text).name)
    if not match:
        raise ValueError(f"{text!r} is no lesson: give its number, as in `lesson 5`")
    return int(match[0])


def neighbours(number, folder=FOLDER):
    """(previous, next) among the lessons that are written, None at the ends."""
    written = lessons(folder)
    return (max((n for n in written if n < number), default=None),
            min((n for n in written if n > number), default=None))


class Cell(typing.NamedTuple):
    """One cell: its kind ("markdown" or "code"), its id, its text without comment signs, its first line's number."""

    kind: str
    id: str
    text: str
    line: int


class Lesson(typing.NamedTuple):
    """A lesson: its number, title, header lines {"Needs": "00", ...}, and cells; the header is cut out of the first."""

    path: Path
    number: int
    title: str
    header: dict
    cells: list

    @property
    def seconds(self):
        """What the header's `Time:` promises on two cores."""
        return float(re.match(r"\d+", self.header["Time"])[0])


def split(text):
    """The cells of a percent file; anything but blank lines before the first is an error."""
    cells, lines = [], text.splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    if not marks or any(line.strip() for line in lines[:marks[0]]):
        raise ValueError("a lesson begins with a line `# %% [markdown] question`")
    for start, end in zip(marks, [*marks[1:], len(lines)], strict=True):
        match = re.fullmatch(r"# %%( \[markdown\])?(?: (\S+))?\s*", lines[start])
        if not match:
            raise ValueError(f"line {start + 1}: {lines[start]!r} is neither `# %% id` nor `# %% [markdown] id`")
        body = lines[start + 1:end]
        if match[1]:
            odd = next((i for i, line in enumerate(body) if line.strip() and not re.match(r"#( |$)", line)), None)
            if odd is not None:
                raise ValueError(f"line {start + 2 + odd}: prose is a comment, `# ` before every line")
            body = [line[2:] for line in body]
        skip = next((i for i, line in enumerate(body) if line.strip()), 0)
        cells.append(Cell("markdown" if match[1] else "code", match[2] or "", "\n".join(body[skip:]).rstrip(),
                          start + 2 + skip))
    return cells


def read(path):
    """A lesson file as a Lesson. Errors name the file and what is missing."""
    path = Path(path)
    try:
        first, *rest = split(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    title = re.match(r"# (\d\d) · (.+)", first.text)
    if first.kind != "markdown" or not title:
        raise ValueError(f"{path.name}: the first cell is prose that begins with `# {path.name[:2]} · Title`")
    header, lines = {}, first.text.splitlines()[1:]
    while lines and (match := re.match(r"([A-Z][a-z]+): (.+)", lines[0])):
        header[match[1]] = match[2].strip()
        lines.pop(0)
    first = first._replace(text="\n".join(lines).strip("\n"))
    return Lesson(path, int(title[1]), title[2].strip(), header, [first, *rest])


class Figure(typing.NamedTuple):
    """What a cell showed: the matplotlib figure and the claim in words."""

    picture: object
    alt: str


class Output(typing.NamedTuple):
    """What one cell did: texts (str) and Figures in their order, and its seconds."""

    parts: list
    seconds: float

    @property
    def text(self):
        return "".join(part for part in self.parts if isinstance(part, str))


class Run:
    """A lesson being run: all its cells share one namespace, as in `python lessons/05_rms_norm.py`."""

    def __init__(self, lesson):
        self.lesson = lesson
        self.module = types.ModuleType("__main__")
        self.module.__file__ = str(lesson.path)
        if str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))  # a lesson may import what lies beside it, wherever it is started

    def cell(self, cell, listener=lambda part: None):
        """Run a code cell; each text and figure goes to the listener as it comes. Errors come out as they are, with
        the lesson's own lines in their traceback."""
        parts, began = [], time.perf_counter()

        def take(part):
            parts.append(part)
            listener(part)

        code = compile("\n" * (cell.line - 1) + cell.text, str(self.lesson.path), "exec")  # numbered as in the file
        with self._stage(take):
            exec(code, self.module.__dict__)
        return Output(parts, time.perf_counter() - began)

    @contextlib.contextmanager
    def _stage(self, take):
        """While a cell runs: its prints and figures are ours, and it believes to be the program."""
        main, receiver = sys.modules["__main__"], plots._receiver
        sys.modules["__main__"] = self.module
        plots._receiver = lambda picture, alt: take(Figure(picture, alt))
        try:
            with contextlib.redirect_stdout(_Listener(take)):
                yield
        finally:
            sys.modules["__main__"], plots._receiver = main, receiver


class _Listener(io.TextIOBase):
    def __init__(self, take):
        self.take = take

    def write(self, text):
        if text:
            self.take(text)
        return len(text)
