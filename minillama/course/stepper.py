"""`lesson N` in the terminal: prose, code, run, figure, one cell after another. In a pipe: the same text, no questions.

Prose comes first and PyTorch is only imported by the lesson's own code, so that nobody waits before reading.
"""

import io
import keyword
import os
import shutil
import sys
import tokenize
import traceback
from pathlib import Path

from minillama.course import lesson as lessons
from minillama.course.prose import BOLD, CODE, END, SOFT, markdown
from minillama.plots import save_png
from minillama.simt.compiler import NotBuilt
from minillama.system.terminal import visible

KEYS = "[Enter] run  [s]kip  [b]ack  [o]pen figure  [q]uit > "
OUT = Path("out/lessons")


def step(path, source=None, out=None):
    """Lead through a lesson; return the exit code: 0 at the end or at `q`, 1 where a cell failed in a pipe."""
    source, out = source or sys.stdin, out or sys.stdout
    asks = source.isatty() and out.isatty()
    stage = _Stage(lessons.read(path), out, asks, asks and "NO_COLOR" not in os.environ)
    stage.title()
    cells, run, here, failed = stage.lesson.cells, lessons.Run(stage.lesson), 0, False
    while here < len(cells):
        cell = cells[here]
        stage.cell(here)
        answer = stage.ask(source) if asks and cell.kind == "code" else ""
        if answer == "q":
            return 0
        if answer == "b":
            here = max([i for i in range(here) if cells[i].kind == "code"], default=0)
            continue
        if cell.kind == "code" and answer != "s" and not stage.run(run, cell):
            failed = True
            if not asks:
                return 1
            stage.say("(Enter runs the next cell all the same, b goes back)")
        here += 1
    stage.end(failed)
    return 0


def list_lessons(folder=lessons.FOLDER, out=print):
    """One line for each lesson that is written."""
    for number, path in lessons.lessons(folder).items():
        lesson = lessons.read(path)
        out(f"{number:02}  {lesson.title:<40} {lesson.header.get('Time', ''):>5}")
    out("read one: python3 run.py lesson 5")
    return 0


class _Stage:
    """What the reader sees."""

    def __init__(self, lesson, out, asks, colour):
        self.lesson, self.asks, self.colour, self.figures = lesson, asks, colour, []
        self.out = getattr(out, "raw", out)  # our colours are no stranger's
        self.shown = visible if out.isatty() else str

    def say(self, text=""):
        print(text, file=self.out, flush=True)

    def tint(self, colour, text):
        return f"{colour}{text}{END}" if self.colour else text

    def title(self):
        lesson, columns = self.lesson, min(88, shutil.get_terminal_size().columns)
        name = self.shown(f"{lesson.number:02} · {lesson.title}")
        facts = self.shown(f"needs {lesson.header.get('Needs', '-')} · about {lesson.header.get('Time', '?')}")
        self.say(self.tint(BOLD, name) + " " * max(2, columns - len(name) - len(facts)) + self.tint(SOFT, facts))
        for key in ("Teaches", "Covers", "Paper"):
            for line in markdown(self.shown(f"{key}: {lesson.header.get(key, '-')}")):
                self.say(self.tint(SOFT, line))
        self.say()

    def cell(self, here):
        """Prose as prose; code between two rules."""
        cell, count = self.lesson.cells[here], len(self.lesson.cells)
        if cell.kind == "markdown":
            self.say("\n".join(markdown(self.shown(cell.text), self.colour)) + "\n")
            return
        rule = f"── {cell.id} · cell {here + 1} of {count} "
        self.say(self.tint(SOFT, rule + "─" * max(0, 88 - len(rule))))
        self.say(highlighted(cell.text) if self.colour else self.shown(cell.text))
        self.say(self.tint(SOFT, "─" * 88))

    def ask(self, source):
        """A key; `o` is answered here. The end of input quits."""
        while True:
            print(self.tint(SOFT, KEYS), end="", file=self.out, flush=True)
            line = source.readline()
            answer = line.strip().lower()[:1] if line else "q"
            if answer == "o":
                self.open_figure()
            elif answer in ("", "s", "b", "q"):
                return answer

    def run(self, run, cell):
        """True where the cell ran; else its traceback was printed, from the lesson's own lines on."""
        try:
            output = run.cell(cell, self.show)
        except KeyboardInterrupt:
            if not self.asks:
                raise
            self.say("(interrupted)")
            return False
        except NotBuilt as missing:
            self.say(f"minillama: error: {self.shown(str(missing))}")
            return False
        except Exception as error:
            frames = error.__traceback__.tb_next  # our own frame is no news
            while frames and frames.tb_frame.f_code.co_filename != str(self.lesson.path):
                frames = frames.tb_next
            self.say(self.shown("".join(traceback.format_exception(type(error), error, frames)).rstrip()))
            return False
        seconds = f"({output.seconds:.1f} s)"
        self.say(self.tint(SOFT, f"{seconds:>88}") if self.asks else "")
        return True

    def show(self, part):
        """Text as it comes; a figure as lines of text, its path and its claim."""
        if isinstance(part, str):
            print(self.shown(part), end="", file=self.out, flush=True)
            return
        from minillama.course.braille import draw

        path = save_png(part.picture, OUT / f"{self.lesson.path.stem}-{len(self.figures) + 1}.png")
        self.figures.append(path)
        for line in draw(part.picture, self.colour):
            self.say(line)
        self.say(self.shown(f"figure: {path}: {part.alt}"))

    def open_figure(self):
        """The last figure in the system's own viewer."""
        if not self.figures:
            self.say("no figure yet")
            return
        import webbrowser

        self.say(f"opening {self.figures[-1]}")
        webbrowser.open(self.figures[-1].resolve().as_uri())

    def end(self, failed):
        """Where to go on."""
        _, after = lessons.neighbours(self.lesson.number, self.lesson.path.parent)
        exercise = self.lesson.path.parent / "exercises" / f"ex{self.lesson.path.name}"
        if exercise.exists() and not failed:
            self.say(f"exercise: lessons/exercises/{exercise.name}, then python3 run.py check {self.lesson.number}")
        if after is not None:
            self.say(f"next: python3 run.py lesson {after}")


def highlighted(code):
    """Python with keywords, texts and comments in colour, by the standard library's own tokenizer."""
    lines = [list(map(visible, line)) for line in code.split("\n")]
    for token in tokenize.generate_tokens(io.StringIO(code + "\n").readline):
        shade = {tokenize.COMMENT: SOFT, tokenize.STRING: "\033[32m", tokenize.NUMBER: "\033[33m"}.get(token.type)
        if token.type == tokenize.NAME and keyword.iskeyword(token.string):
            shade = CODE
        if shade:
            (first, start), (last, end) = token.start, token.end
            lines[first - 1][start] = shade + lines[first - 1][start]
            lines[last - 1][end - 1] += END
            for row in range(first - 1, last - 1):  # a text of several lines: each line for itself
                if lines[row]:
                    lines[row][-1] += END
                if lines[row + 1]:
                    lines[row + 1][0] = shade + lines[row + 1][0]
    return "\n".join("".join(line) for line in lines)
