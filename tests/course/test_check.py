"""Laws of `check N`: what is said of a graded answer, and what is kept of it. The grader is a stand-in."""

import json
import os

import prove_exercises
import pytest
from mutants import Mutant

from minillama.course import check
from minillama.course.check import Progress
from minillama.course.grader import Graded, Result

HINTS = {"half": ["which?", "the other", "divide"], "double": []}


def graded(*verdicts, hint=0):
    """Of the checks half, double and last, those that have a verdict."""
    names = ("half", "double", "last")
    return Graded(list(names), HINTS, [Result(name, verdict, f"{name} is wrong", hint, 0.126)
                                       for name, verdict in zip(names, verdicts, strict=False)])


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Exercises 05 and 07, and what the grader is to find next: {stem: Graded}, what it printed."""
    for folder, name in (("exercises", "ex"), ("solutions", "sol"), ("checks", "chk")):
        (tmp_path / folder).mkdir()
        for stem in ("05_halves", "07_two_words"):
            (tmp_path / folder / f"{name}{stem}.py").write_text(f"# {name}{stem}\n\n")
    (tmp_path / "exercises" / "notes.py").touch()
    found = {"printed": ""}
    monkeypatch.setattr(check, "grade", lambda checks, files: (
        [found[files[0].stem.removeprefix("ex")]], found["printed"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path, found


def said(course, number=5):
    lines = []
    code = check.check(number, Progress(course[0] / "state.json"), course[0], lines.append)
    return code, lines


def test_an_exercise_is_its_three_files(course):
    folder = course[0]
    assert check.exercises(folder) == {number: (folder / "exercises" / f"ex{stem}.py",
                                                folder / "solutions" / f"sol{stem}.py",
                                                folder / "checks" / f"chk{stem}.py")
                                       for number, stem in ((5, "05_halves"), (7, "07_two_words"))}
    with pytest.raises(ValueError, match="^lesson 06 has no exercise: there are 05 07$"):
        check.find(6, folder)
    with pytest.raises(ValueError, match="there are none"):
        check.find(6, folder / "checks")


def test_each_check_has_a_line_and_a_failing_one_its_hint(course):
    course[1]["05_halves"] = graded("ok", "fail")
    code, lines = said(course)
    assert code == 1 and lines == [
        "05 halves   exercises/ex05_halves.py", "  [ok]   half             0.13 s",
        "  [fail] double           double is wrong", "  [to do] last",
        "  1/3 checks passed        solution: python3 run.py check 5 --solution", "progress: 0/2  .."]
    course[1]["05_halves"] = graded("fail", "todo")
    code, lines = said(course)
    assert code == 1 and lines[1:4] == ["  [fail] half             half is wrong", "         hint 1/3: which?",
                                        "  [to do] double"]
    course[1]["07_two_words"] = graded("ok", "ok", "ok")
    assert said(course, 7) == (0, ["07 two_words   exercises/ex07_two_words.py", *(
        f"  [ok]   {name:<16} 0.13 s" for name in ("half", "double", "last")),
        "  3/3 checks passed        solution: python3 run.py check 7 --solution", "progress: 1/2  |."])


def test_of_what_an_answer_prints_twenty_lines_are_shown(course):
    course[1].update({"05_halves": graded("todo"), "printed": "\n" + "".join(f"line {i}\n" for i in range(30))})
    code, lines = said(course)
    assert code == 0 and lines[4:-2] == ["  your code printed:", *(f"    line {i}" for i in range(20))]
    course[1]["printed"] = " \n"
    assert "  your code printed:" not in said(course)[1]


def test_hints_go_on_while_the_mistake_is_the_same_and_end_with_the_last(course):
    progress = Progress(course[0] / "state.json")
    for verdict, hint, shown in (("fail", 1, 1), ("fail", 1, 2), ("fail", 1, 2), ("fail", 0, 0), ("fail", 0, 1),
                                 ("todo", 0, None), ("fail", 0, 0), ("fail", 9, 2)):
        assert progress.note(5, graded(verdict, hint=hint)).get("half") == shown
        progress = Progress(course[0] / "state.json")  # it is kept
    assert progress.note(7, graded("fail", "fail")) == {"half": 0, "double": 0}, "of another exercise; without a hint"
    assert progress.note(5, graded("fail", hint=9)) == {"half": 2}


def test_what_has_passed_is_kept_in_order_until_it_fails_again(course):
    path = course[0] / "new" / "state.json"
    progress = Progress(path)
    assert progress.resume([5, 7]) == 5 and Progress(path).data["passed"] == []
    for number, verdicts, passed in ((7, ("ok",) * 3, [7]), (5, ("ok",) * 3, [5, 7]), (7, ("ok", "ok"), [5]),
                                     (5, ("ok", "ok", "fail"), [])):
        progress.note(number, graded(*verdicts))
        kept = json.loads(path.read_text())
        assert (kept["passed"], kept["last"]) == (passed, number)
    assert Progress(path).resume([5, 7]) == 5 and Progress(path).resume([7, 9]) == 7
    assert Progress(path).bar([5, 7, 9]) == "progress: 0/3  ..."


def test_watch_grades_a_file_anew_once_it_has_another_time(course, monkeypatch):
    folder, found = course
    stub, lines, times = folder / "exercises" / "ex05_halves.py", [], iter([1, 1, 2, None, 2, 3])
    found["05_halves"] = graded("ok")

    def pause(seconds):
        assert seconds == 0.5
        now = next(times, 0)
        if now == 0:
            raise KeyboardInterrupt
        stub.unlink(missing_ok=True)  # as an editor does for a moment
        if now:
            stub.write_text("x")
            os.utime(stub, (now, now))

    monkeypatch.setattr(check.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        check.watch(5, Progress(folder / "state.json"), folder, lines.append)
    assert sum(line.startswith("watching exercises/ex05_halves.py: save") for line in lines) == 4, "first, 1, 2, 3"


def test_an_exercise_is_sound_where_stub_solution_and_each_wrong_answer_are_graded_so(course, monkeypatch):
    folder, files_seen = course[0], []
    (folder / "checks" / "chk05_halves.py").write_text(
        'WRONG = [("sol05", "one", "half", 1), ("halves", "two", "double", 0)]\n')
    hints = {**HINTS, "double": ["twice"]}
    todo, solved = graded("todo", "todo"), graded("ok", "ok", "ok")
    first, second = (Graded([], hints, results) for results in (
        [Result("half", "fail", "", 1, 0.0)], [Result("half", "ok", "", 0, 0.0), Result("double", "fail", "", 0, 0.0)]))

    def grade(checks, files):
        files_seen[:] = [file.read_text() for file in files]
        return answer, ""

    monkeypatch.setattr(prove_exercises, "grade", grade)
    answer = [todo, solved, first, second]
    assert prove_exercises.prove(5, folder) == []
    assert files_seen == ["# ex05_halves\n\n", "# sol05_halves\n\n", "# one_halves\n\n", "# sol05_two\n\n"]
    for place, other, words in ((0, solved, "not everything is to do"), (1, todo, "sol05_halves.py does not pass"),
                                (2, second, "'sol05' -> 'one' must fail in half with hint 1"),
                                (2, solved, "'one' must fail in half"),
                                (3, first, "'two' must fail in double with hint 0"),
                                (3, Graded([], {"double": []}, second.results), "double has no hint 0")):
        answer = [todo, solved, first, second]
        answer[place] = other
        said = prove_exercises.prove(5, folder)
        assert len(said) == 1 and words in said[0], said
    (folder / "checks" / "chk05_halves.py").write_text('WRONG = [("s", "one", "half", 1), ("z", "two", "half", 0)]\n')
    assert prove_exercises.prove(5, folder) == [
        f"chk05_halves.py: {old!r} occurs {times} times in the solution, not once"
        for old, times in (("s", 2), ("z", 0))]
    (folder / "checks" / "chk05_halves.py").write_text("WRONG = []\n")
    assert prove_exercises.prove(5, folder) == ["chk05_halves.py: WRONG is empty: no wrong answer is shown to fail"]


def test_all_exercises_are_a_line_each_and_one_failure_is_the_verdict(course, monkeypatch):
    folder, found = course
    lines = []
    for verdicts, code in ((("ok", "ok", "ok"), 0), (("todo",), 0), (("ok", "fail"), 1)):
        lines.clear()
        found.update({"05_halves": graded("ok"), "07_two_words": graded(*verdicts)})
        assert check.check_all(folder, lines.append) == code
    assert lines == ["  [to do] 05  1/3  exercises/ex05_halves.py", "  [fail]  07  1/3  exercises/ex07_two_words.py"]
    monkeypatch.setattr(prove_exercises, "prove", lambda number, folder: ["a gap", "another"] * (number == 7))
    lines.clear()
    assert prove_exercises.prove_all(folder, lines.append) == 1 and lines == ["a gap", "another", "2 exercises: 2 gaps"]
    monkeypatch.setattr(prove_exercises, "prove", lambda number, folder: [])
    assert prove_exercises.prove_all(folder, lines.append) == 0 and lines[-1] == "2 exercises: no gaps"


def test_a_course_without_exercises_is_no_success(tmp_path):
    assert prove_exercises.prove_all(tmp_path, out=lambda line: None) == 1
    assert check.check_all(tmp_path, out=lambda line: None) == 1


def test_a_solution_is_shown_in_all_its_parts(course, monkeypatch):
    folder, lines = course[0], []
    (folder / "solutions" / "sol05_halves.cu").write_text("__global__\n\n")
    assert check.show_solution(5, folder, lines.append) == 0
    assert lines == ["# solutions/sol05_halves.py\n", "# sol05_halves", "# solutions/sol05_halves.cu\n", "__global__"]
    monkeypatch.chdir(folder / "checks")
    lines.clear()
    check.show_solution(7, folder, lines.append)
    assert lines[0] == f"# {folder / 'solutions' / 'sol07_two_words.py'}\n", "from elsewhere the whole path"


def kept_by_another():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        test_what_has_passed_is_kept_in_order_until_it_fails_again((Path(folder), {}))


def empty_course():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        test_a_course_without_exercises_is_no_success(Path(folder))


MUTANTS = [
    Mutant("minillama.course.check", "set(self.data[\"passed\"]) - {number}", "set(self.data[\"passed\"])",
           kept_by_another),
    Mutant("prove_exercises", "return 1 if gaps or not numbers else 0", "return 1 if gaps else 0", empty_course),
]
