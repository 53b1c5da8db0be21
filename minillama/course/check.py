"""`check N`: grades a learner's answer to an exercise, and keeps the learner's place.

Hints are graded: each further failing run shows the next one. `grader.py` runs the learner's code.
"""

import contextlib
import json
import time
from pathlib import Path

from minillama.course import lesson
from minillama.course.grader import grade
from minillama.system.files import atomic_write

STATE = lesson.ROOT / "out" / "progress.json"


def exercises(folder=lesson.FOLDER):
    """{number: (stub, solution, checks)} of the exercises that are there, all three files of each."""
    found = {}
    for stub in sorted(Path(folder).glob("exercises/ex[0-9][0-9]_*.py")):
        name = stub.name.removeprefix("ex")
        found[int(name[:2])] = stub, Path(folder, "solutions", f"sol{name}"), Path(folder, "checks", f"chk{name}")
    return found


def find(number, folder=lesson.FOLDER):
    """The three files of an exercise; where there is none, an error that says what there is."""
    there = exercises(folder)
    if number not in there:
        have = " ".join(f"{n:02}" for n in there) or "none: they live in minillama's checkout, start it from there"
        raise ValueError(f"lesson {number:02} has no exercise: there are {have}")
    return there[number]


class Progress:
    """What a learner has passed and how often each check failed, in a small JSON file."""

    def __init__(self, path=STATE):
        self.path = Path(path)
        self.data = {"last": None, "passed": [], "fails": {}}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: the place is lost
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if all(isinstance(found[key], kind) for key, kind in (("passed", list), ("fails", dict))):
                self.data.update(found)

    def note(self, number, graded):
        """Record one run; return {check: index of the hint to show} for what failed."""
        fails, shown = self.data["fails"].setdefault(str(number), {}), {}
        for name, verdict, _, hint, _ in graded.results:
            if verdict == "fail":  # a new kind of mistake begins with its own first hint
                again = name in fails and fails[name][0] == hint
                last = max(0, len(graded.hints.get(name, ())) - 1)
                shown[name] = min(fails[name][1] + 1 if again else hint, last)
                fails[name] = [hint, shown[name]]
            else:
                fails.pop(name, None)
        done = set(self.data["passed"]) - {number} | ({number} if graded.verdict == "ok" else set())
        self.keep(last=number, passed=sorted(done))
        return shown

    def keep(self, **changes):
        """Change what is known of the learner, and write it: `last`, the lesson opened or exercise graded last."""
        self.data.update(changes)
        with contextlib.suppress(OSError):  # a folder that cannot be written: only the place is lost
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path, "w") as file:
                json.dump(self.data, file)

    def bar(self, numbers):
        """`progress: 3/11  |||........`"""
        passed = [number for number in numbers if number in self.data["passed"]]
        return f"progress: {len(passed)}/{len(numbers)}  {'|' * len(passed)}{'.' * (len(numbers) - len(passed))}"

    def resume(self, numbers):
        """The exercise to go on with: that of the lesson or exercise touched last, else the first; never the next."""
        return self.data["last"] if self.data["last"] in numbers else min(numbers, default=1)


def check(number, progress=None, folder=lesson.FOLDER, out=print):
    """Grade the learner's file of one exercise, say it line by line, and return the exit code: 1 where a check failed
    (what is to do has not)."""
    stub, _, checks = find(number, folder)
    progress = progress or Progress()
    (graded,), printed = grade(checks, [stub])
    shown = progress.note(number, graded)
    out(f"{stub.stem.removeprefix('ex').replace('_', ' ', 1)}   {_near(stub)}")
    for name in dict.fromkeys([*(result.check for result in graded.results), *graded.checks]):
        for line in _lines(name, graded, shown):
            out(line)
    if printed.strip():
        out("  your code printed:")
        for line in printed.strip().splitlines()[:20]:
            out(f"    {line}")
    passed = sum(result.verdict == "ok" for result in graded.results)
    out(f"  {passed}/{len(graded.checks)} checks passed        solution: python3 run.py check {number} --solution")
    out(progress.bar(exercises(folder)))
    return 1 if graded.verdict == "fail" else 0


def _lines(name, graded, shown):
    result = next((result for result in graded.results if result.check == name), None)
    if result is None or result.verdict == "todo":
        yield f"  [to do] {name}"
    elif result.verdict == "ok":
        yield f"  [ok]   {name:<16} {result.seconds:.2f} s"
    else:
        yield f"  [fail] {name:<16} {result.message}"
        if hints := graded.hints.get(name):
            yield f"         hint {shown[name] + 1}/{len(hints)}: {hints[shown[name]]}"


def _near(path):
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def show_solution(number, folder=lesson.FOLDER, out=print):
    """The solution's path and its text."""
    solution = find(number, folder)[1]
    for part in parts(solution):
        out(f"# {_near(part)}\n")
        out(part.read_text(encoding="utf-8").rstrip())
    return 0


def watch(number, progress=None, folder=lesson.FOLDER, out=print, pause=0.5):
    """Grade, and grade again at every save, until Ctrl-C. It stays at this exercise, whatever happens."""
    stub, seen = find(number, folder)[0], None
    while True:
        now = [part.stat().st_mtime_ns for part in parts(stub)] or seen
        if now != seen:
            seen = now
            check(number, progress, folder, out)
            out(f"watching {_near(stub)}: save it to check again, Ctrl-C to end")
        time.sleep(pause)


def parts(path):
    """The files of an answer: the Python one, and a CUDA one of the same name where there is one."""
    return [part for part in (path, path.with_suffix(".cu")) if part.exists()]


def check_all(folder=lesson.FOLDER, out=print):
    """Grade every exercise and say one line for each; exit code 1 where one fails. No hint is used up by it."""
    verdicts = []
    for number, (stub, _, checks) in exercises(folder).items():
        (graded,), _ = grade(checks, [stub])
        passed = sum(result.verdict == "ok" for result in graded.results)
        verdicts.append(graded.verdict)
        word = {"ok": "[ok]", "fail": "[fail]", "todo": "[to do]"}[graded.verdict]
        out(f"  {word:<8}{number:02}  {passed}/{len(graded.checks)}  {_near(stub)}")
    return 1 if "fail" in verdicts or not verdicts else 0
