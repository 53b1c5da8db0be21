"""The one door to the terminal: what a model, a file or a name brings is shown there and not obeyed.

A text from a stranger may hold the sequences that set a window's title, write the clipboard or turn the line around.
`guard_streams` stands in front of stdout, where a terminal listens, and in front of stderr always; a pipe or a file
gets a command's text bit for bit. A stream that is closed, or cannot be written, says so by its name.
"""

import contextlib
import errno
import io
import os
import re
import sys
import weakref

_bars: weakref.WeakSet = weakref.WeakSet()  # those that may be open
# C0 and DEL and C1; what turns or hides text (UAX #9, and the deprecated and annotating format characters); the two
# separators of lines; halves of surrogate pairs, as bytes that are no UTF-8 become in a file's name
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]")


def visible(text, kept="\n\t"):
    r"""The text with each control character as its escape in Python, but those in `kept`.

    >>> print(visible("\x1b]0;title\x07 two\nlines"))
    \x1b]0;title\x07 two
    lines
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(), text)


def one_line(text):
    r"""A name or a message as one visible line.

    >>> print(one_line("a\nb"))
    a\nb
    """
    return visible(str(text), kept="")


def explain(error):
    """An exception as one line with the next step."""
    if isinstance(error, OSError) and error.filename:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        step = "make room, and give the same command again" if full else "check the path"
        return f"{one_line(os.fsdecode(error.filename))}: {error.strerror}: {step}"
    text = str(error).strip()
    if isinstance(error, RuntimeError):  # PyTorch speaks in paragraphs; ours is one line, unless a name brings others
        text = " ".join(text.split())
    if isinstance(error, ImportError):
        text += ": `python3 run.py info` makes an environment with all that is needed"
    return one_line(text) or type(error).__name__


def tqdm(*arguments, desc="", **options):
    """tqdm's progress bar, which returns to the line's begin: it goes past the guard of stderr, its name does not."""
    from tqdm import tqdm as bar

    made = bar(*arguments, desc=one_line(desc), file=getattr(sys.stderr, "raw", None), **options)
    _bars.add(made)
    return made


def tell(message):
    """The last word of a command, on a line of its own below the progress bars that are open."""
    for bar in list(_bars):
        bar.close()
    print(f"minillama: {message}", file=sys.stderr)


class Guarded:
    """A text stream that shows control characters if `shows`; `raw` is the same one for what we make ourselves."""

    def __init__(self, stream, name, shows):
        self._stream, self._name, self._shows = stream, name, shows
        self.raw = Guarded(stream, name, False) if shows else self

    def __getattr__(self, attribute):
        return getattr(self._stream, attribute)

    def write(self, text):
        """As the stream does it; an OSError but for a closed pipe carries the stream's name, and on stderr none is
        raised: a run does not end because nobody hears it."""
        with self._named():
            self._stream.write(visible(text) if self._shows else text)
        return len(text)

    def flush(self):
        """As the stream does it, with the same errors as `write`."""
        with self._named():
            self._stream.flush()

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:
            if self._name == "stderr":
                return
            if isinstance(error, BrokenPipeError) or error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, self._name) from None


class Closed(io.TextIOBase):
    """In the place of a standard stream that the caller closed: a command that needs it says so."""

    def __init__(self, name):
        self._name = name

    def _refuse(self, *_):
        way = "< FILE" if self._name == "stdin" else "> FILE"
        raise ValueError(f"{self._name} is closed: give it a terminal, or a file by {way}")

    read = readline = write = _refuse
    buffer = property(_refuse)


@contextlib.contextmanager
def guard_streams():
    """While a command runs: stdin, stdout and stderr are there, speak UTF-8, and are guarded."""
    before = sys.stdin, sys.stdout, sys.stderr
    _reserve_descriptors()
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "replace")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdin = before[0] or Closed("stdin")
        sys.stdout = Guarded(before[1] or Closed("stdout"), "stdout", bool(before[1]) and before[1].isatty())
        sys.stderr = Guarded(before[2] or nowhere, "stderr", True)
        try:
            yield
        finally:
            _settle(before[1])
            _settle(before[2])
            sys.stdin, sys.stdout, sys.stderr = before


def _reserve_descriptors():
    """Nothing that is opened later may get the number of a closed standard stream, which C code writes to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _settle(stream):
    """Flush; what cannot be written is dropped here, or Python would speak of it at its end."""
    try:
        stream and stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
