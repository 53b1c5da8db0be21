"""That every exercise is sound: `python tools/prove_exercises.py`, typed in `python3 run.py shell`.

A learner needs none of this: here the graded answers are the stubs, the solutions and the listed wrong answers.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from minillama.course import check, lesson
from minillama.course.exercise import load
from minillama.course.grader import grade


def prove(number, folder=lesson.FOLDER):
    """What is wrong with an exercise, as sentences: the stub must be "to do", the solution pass, and each listed
    wrong answer fail in its check with its hint."""
    stub, solution, checks = check.find(number, folder)
    texts, wrong = {path.suffix: path.read_text(encoding="utf-8") for path in check.parts(solution)}, load(checks).WRONG
    count = {old: sum(text.count(old) for text in texts.values()) for old, *_ in wrong}
    said = [f"{checks.name}: {old!r} occurs {times} times in the solution, not once"
            for old, times in count.items() if times != 1]
    if said or not wrong:
        return said or [f"{checks.name}: WRONG is empty: no wrong answer is shown to fail"]
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, f"wrong{i}.py") for i in range(len(wrong))]
        for file, (old, new, *_) in zip(files, wrong, strict=True):
            for suffix, text in texts.items():
                file.with_suffix(suffix).write_text(text.replace(old, new), encoding="utf-8")
        (untouched, solved, *failed), _ = grade(checks, [_as_committed(stub, place), solution, *files])
    if {result.verdict for result in untouched.results} != {"todo"}:
        said.append(f"{stub.name}: not everything is to do: {untouched.results}")
    if solved.verdict != "ok":
        said.append(f"{solution.name} does not pass: {[r for r in solved.results if r.verdict != 'ok']}")
    for (old, new, name, hint), graded in zip(wrong, failed, strict=True):
        first = next((result for result in graded.results if result.verdict != "ok"), None)
        if first is None or (first.check, first.verdict, first.hint) != (name, "fail", hint):
            said.append(f"{checks.name}: {old!r} -> {new!r} must fail in {name} with hint {hint}, got {first}")
        if not 0 <= hint < len(graded.hints.get(name, ())):
            said.append(f"{checks.name}: {name} has no hint {hint}")
    return said


def _as_committed(stub, place):
    """The stub as the repository has it: the file itself may hold a learner's work."""
    for part in check.parts(stub):
        done = subprocess.run(["git", "show", f"HEAD:./{part.name}"], cwd=part.parent, capture_output=True)
        Path(place, part.name).write_bytes(part.read_bytes() if done.returncode else done.stdout)
    return Path(place, stub.name)


def prove_all(folder=lesson.FOLDER, out=print):
    """The proof for every exercise; exit code 1 where one has a gap, or where there is none to prove."""
    numbers = check.exercises(folder)
    gaps = [gap for number in numbers for gap in prove(number, folder)]
    for line in gaps:
        out(line)
    out(f"{len(numbers)} exercises: {len(gaps) or 'no'} gaps")
    return 1 if gaps or not numbers else 0


if __name__ == "__main__":
    sys.exit(prove_all())
