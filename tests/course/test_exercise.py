"""Laws of the grader: what is right passes, what is wrong is told where and why, and no answer kills it."""

import json
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import Mutant
from prove_exercises import prove

from minillama.cli.command_line import main
from minillama.course import check
from minillama.course.exercise import Wrong, close
from minillama.course.grader import KEPT, grade

CHECKS = '''"""Checks of exercise 05: halves and doubles."""
from minillama.course.exercise import close

HINTS = {"half": ("which operator?", "the other one", "divide by two"), "double": ("twice as much",)}


def check_half(learner):
    close("half", learner.half(1.0), 0.5, 1e-9, hint=1 if learner.half(1.0) > 1 else 0)


def check_double(learner):
    close("double", learner.double(2), 4, 0)


WRONG = [("/ 2", "* 2", "half", 1), ("/ 2", "/ 3", "half", 0), ("+ x", "", "double", 0)]
'''
STUB = '''"""Halves and doubles."""


def half(x):
    """x / 2"""
    raise NotImplementedError("your code here")


def double(x):
    """x + x"""
    raise NotImplementedError("your code here")
'''
RIGHT = "def half(x):\n    return x / 2\n\n\ndef double(x):\n    return x + x\n"


def course(folder, answer=STUB, solution=RIGHT, checks=CHECKS):
    """A course of one exercise in an empty folder."""
    for place, name, text in (("exercises", "ex", answer), ("solutions", "sol", solution), ("checks", "chk", checks)):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / f"{name}05_halves.py").write_text(text, encoding="utf-8")
    return folder


def graded(folder, answer, limit=60):
    stub, _, checks = check.find(5, course(folder, answer))
    (result,), printed = grade(checks, [stub], limit)
    return result, printed


def said(folder, answer, progress=None):
    """Exit code and lines of `check 5`."""
    lines = []
    code = check.check(5, progress or check.Progress(folder / "state.json"), course(folder, answer), lines.append)
    return code, lines


@pytest.mark.parametrize(("got", "wanted", "words"), [
    (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), "largest error 0.5 at [1] (got 2.5, wanted 2), 1 of 2"),
    (torch.ones(2, 3), torch.ones(3, 2), "shape (2, 3), wanted (3, 2)"),
    (torch.ones(2), torch.ones(2, dtype=torch.float64), "dtype torch.float32, wanted torch.float64"),
    (torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2), "is nan at [0, 1], wanted 0"),
    (torch.tensor([math.inf]), torch.tensor([-math.inf]), "largest error inf at [0]"),
    (None, torch.ones(2), "is None (does the function end without `return`?), wanted"),
    ([1.0], torch.ones(1), "is a list, wanted a Tensor"),
    (np.ones(3), torch.ones(3, dtype=torch.float64), "is a ndarray, wanted a Tensor"),
    (np.array([1, 2]), np.array([1, 3]), "largest error 1 at [1]"),
    (math.nan, 1.0, "is nan, wanted 1"),
    (True, 1, "is a bool, wanted a number"),
    (3, 4, "is 3, wanted 4"),
    ([1, 2, 3], [1, 2], "length 3, wanted 2"),
    ((1, [2, 5]), (1, [2, 3]), "x[1][1] is 5, wanted 3"),
    ([1], (1,), "is a list, wanted a tuple"),
    ("ab", "ac", "is 'ab', wanted 'ac'"),
    ({"a": 1}, {"a": 2}, "wanted {'a': 2}"),
], ids=lambda value: str(value)[:24])
def test_close_names_what_is_wrong(got, wanted, words):
    with pytest.raises(Wrong) as caught:
        close("x", got, wanted, 0.1, hint=2)
    assert words in str(caught.value) and str(caught.value).startswith("x") and caught.value.hint == 2


@pytest.mark.parametrize(("got", "wanted"), [
    (torch.tensor([1.0, 2.05]), torch.tensor([1.0, 2.0])), (torch.tensor([math.nan]), torch.tensor([math.nan])),
    (torch.tensor([-math.inf, 1]), torch.tensor([-math.inf, 1])), (torch.empty(0, 3), torch.empty(0, 3)),
    (torch.nn.Parameter(torch.ones(2)), torch.ones(2)), (torch.tensor(1.0), torch.tensor(1.09)), (1.05, 1), ([], []),
    (0.1, 0), (0.0, 0.1),
    (["a", (1, 2.0)], ["a", (1, 2.05)]), (None, None), (True, True),
], ids=str)
def test_close_accepts_what_is_within_the_tolerance(got, wanted):
    close("x", got, wanted, 0.1)


def test_an_untouched_stub_is_to_do_and_the_solution_passes_and_listed_mistakes_are_caught(tmp_path):
    assert prove(5, course(tmp_path)) == []


@pytest.mark.parametrize(("parts", "words"), [
    ({"answer": RIGHT}, "ex05_halves.py: not everything is to do"),
    ({"solution": RIGHT.replace("x / 2", "x / 2 + 1")}, "sol05_halves.py does not pass"),
    ({"checks": CHECKS.replace('"half", 1)', '"half", 2)')}, "must fail in half with hint 2"),
    ({"checks": CHECKS.replace('"double", 0)', '"half", 0)')}, "'+ x' -> '' must fail in half"),
    ({"checks": CHECKS.replace('"/ 3"', '"/ 2.0"')}, "must fail in half with hint 0, got None"),
    ({"checks": CHECKS.replace('("+ x"', '("x"')}, "occurs 5 times"),
    ({"checks": CHECKS[:CHECKS.index("WRONG")] + "WRONG = []"}, "WRONG is empty"),
    ({"checks": CHECKS.replace('("which operator?", "the other one", "divide by two")', "()")}, "half has no hint 0"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_an_unsound_exercise_is_named(tmp_path, parts, words):
    problems = prove(5, course(tmp_path, **parts))
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(("line", "words"), [
    ("while True: pass", "no answer within 2 seconds, an endless loop?"),
    ("import time; time.sleep(1e6)", "no answer within 2 seconds"),
    ("import os; os._exit(0)", "ended Python, exit code 0"),
    ("import os; os.abort()", "killed Python: SIGABRT"),
    ("import ctypes; ctypes.string_at(0)", "killed Python: SIGSEGV"),
    ("import sys; sys.exit(0)", "SystemExit: 0 (line 2 of ex05_halves.py"),
    ("return torch.ones(3)", "NameError"),
    ("import torch; return torch.ones(1 << 36)", "RuntimeError"),
    ("return bytearray(1 << 36)", "MemoryError"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("return input()", "EOFError"),
    ("return half(x)", "RecursionError"),
])
def test_no_answer_kills_the_grader_and_each_end_is_named(tmp_path, line, words):
    result, _ = graded(tmp_path, f"def half(x):\n    {line}\n", limit=2 if "no answer" in words else 60)
    first = result.results[0]
    assert (first.check, first.verdict) == ("half", "fail") and words in first.message, result.results
    assert result.verdict == "fail"


def test_a_flood_of_text_is_cut_and_a_little_is_shown(tmp_path):
    flood = "import os\n\n\ndef half(x):\n    for _ in range(3000):\n        print('spam' * 1000)\n"
    result, printed = graded(tmp_path, flood + "    os.write(1, b'raw')\n    return x / 2\n")
    assert result.results[0].verdict == "ok" and len(printed) == KEPT
    _, lines = said(tmp_path, RIGHT.replace("    return x / 2", "    print('x is', x)\n    return x / 2"))
    assert any("x is 1.0" in line for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_an_answer_has_started_is_ended_with_it(tmp_path):
    started = tmp_path / "started"
    graded(tmp_path, "import subprocess\n" + RIGHT.replace(
        "    return x / 2", "    left = subprocess.Popen(['sleep', '300'])\n"
        f"    open({str(started)!r}, 'w').write(str(left.pid))\n    return x / 2"))
    state = Path("/proc", started.read_text(), "stat")
    for _ in range(200):  # a signal that was sent acts when the process is next given a processor
        if not state.exists() or state.read_text().rsplit(")")[-1].split()[0] in "ZX":
            return
        time.sleep(0.1)
    pytest.fail("what the answer started still runs")


@pytest.mark.parametrize(("answer", "words"), [
    ("def half(x:\n    pass\n", "SyntaxError"), ("import no_such_module\n", "ModuleNotFoundError"),
    ("raise ValueError('early')\n", "ValueError: early (line 1 of ex05_halves.py: raise ValueError('early'))"),
])
def test_a_file_that_does_not_load_is_one_failure_with_its_line(tmp_path, answer, words):
    code, lines = said(tmp_path, answer)
    assert code == 1 and words in "\n".join(lines) and "line 1 of ex05_halves.py" in "\n".join(lines)
    assert "[fail] load" in lines[1] and "[to do] half" in lines[2]


def test_each_failing_run_shows_the_next_hint_and_a_new_mistake_begins_with_its_own(tmp_path):
    def hint(answer):
        return next(line.split("hint ")[1][:3] for line in said(tmp_path, answer)[1] if "hint " in line)

    third, twice = RIGHT.replace("/ 2", "/ 3"), RIGHT.replace("/ 2", "* 2")
    assert [hint(third) for _ in range(4)] == ["1/3", "2/3", "3/3", "3/3"]
    assert [hint(twice), hint(twice)] == ["2/3", "3/3"]
    assert said(tmp_path, RIGHT)[0] == 0
    assert hint(third) == "1/3", "a pass in between takes the hints back"


def test_what_is_to_do_is_never_called_a_failure_and_what_passes_stays_passed(tmp_path):
    code, lines = said(tmp_path, STUB)
    assert code == 0 and "[fail]" not in "\n".join(lines) and lines[-1] == "progress: 0/1  ."
    code, lines = said(tmp_path, RIGHT)
    assert code == 0 and "2/2 checks passed" in lines[-2] and lines[-1] == "progress: 1/1  |"
    code, lines = said(tmp_path, RIGHT.replace("x + x", "x"))
    assert code == 1 and "[ok]   half" in lines[1] and "[fail] double" in lines[2] and lines[-1].endswith(" .")


@pytest.mark.parametrize("text", ["", "[]", "null", '{"last": 5}', "\0", '{"passed": 3, "fails": []}'])
def test_a_damaged_progress_file_only_loses_the_place(tmp_path, text):
    (tmp_path / "state.json").write_text(text, encoding="utf-8")
    assert said(tmp_path, RIGHT)[0] == 0
    assert json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))["passed"] == [5]


def test_watch_grades_once_for_each_save_and_stays_at_its_exercise(tmp_path, monkeypatch):
    lines, pauses = [], iter([lambda: None, lambda: course(tmp_path, RIGHT), lambda: None])

    def sleep(seconds):
        next(pauses, stop)()

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(check.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        check.watch(5, check.Progress(tmp_path / "state.json"), course(tmp_path), lines.append)
    assert [line.strip()[:3] for line in lines if "checks passed" in line] == ["0/2", "2/2"]


def test_check_without_a_number_resumes_and_never_moves_on(tmp_path):
    progress = check.Progress(tmp_path / "state.json")
    assert progress.resume([1, 5, 7]) == 1
    said(tmp_path, RIGHT, progress)
    assert check.Progress(tmp_path / "state.json").resume([1, 5, 7]) == 5


@pytest.mark.parametrize(("word", "words"), [("99", "99 has no exercise: there are"), ("rope", "'rope' is no lesson")])
def test_an_unknown_exercise_is_one_line(word, words, capsys):
    assert main(["check", word]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_the_solution_is_shown_with_its_place(capsys):
    number, (_, solution, _) = next(iter(check.exercises().items()))
    assert main(["check", str(number), "--solution"]) == 0
    out = capsys.readouterr().out
    assert solution.name in out.splitlines()[0] and solution.read_text(encoding="utf-8").strip() in out


def _flaw(verdict):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        assert graded(Path(place), RIGHT.replace("/ 2", "/ 3"))[0].verdict == verdict


def _prints_nan_as_wrong():
    test_close_names_what_is_wrong(torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2), "is nan at [0, 1], wanted 0")


def _in_folder(law, *arguments):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        law(Path(place), *arguments)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="CUDA is compiled by g++, on Linux")
def test_a_cuda_answer_beside_the_python_one_is_run_and_its_race_told_in_a_sentence(tmp_path):
    checks = ("from minillama.course.exercise import on_gpu\nimport torch\nHINTS = {'turn': ('wait', 'where?')}\n"
              "def check_turn(learner):\n    on_gpu(learner, 'turn', torch.zeros(64), hints={'race': 1})\nWRONG = []\n")
    kernel = ("__global__ void k(float* x) {\n  __shared__ float s[64];\n  s[threadIdx.x] = 1;\n  BARRIER;\n"
              "  x[threadIdx.x] = s[63 - threadIdx.x];\n}\nextern \"C\" void turn(float* x) {\n"
              "  LAUNCH((k), 1, 64, 0, nullptr)(x);\n}\n")
    course(tmp_path, "x = 1\n", "x = 1\n", checks)
    stub, solution, path = check.find(5, tmp_path)
    answers = {stub: "#error your code here\n" + kernel, solution: kernel.replace("BARRIER", "__syncthreads()"),
               tmp_path / "race.py": kernel.replace("BARRIER", ""),
               tmp_path / "typo.py": kernel.replace("BARRIER", "wait")}
    for answer, text in answers.items():
        answer.write_text("x = 1\n")
        answer.with_suffix(".cu").write_text(text)
    untouched, solved, race, typo = (graded.results[-1] for graded in grade(path, list(answers))[0])
    assert (untouched.verdict, solved.verdict, race.verdict, race.hint) == ("todo", "ok", "fail", 1)
    assert "race.cu:3" in race.message and "race.cu:5" in race.message and "no barrier between" in race.message
    assert typo.message.startswith("typo.cu:4:3: error: ") and check.parts(stub)[1].suffix == ".cu"


MUTANTS = [
    Mutant("minillama.course.grader", "block[:max(0, KEPT - len(kept))]", "block",
           lambda: _in_folder(test_a_flood_of_text_is_cut_and_a_little_is_shown)),
    Mutant("prove_exercises", '!= {"todo"}:', '== {"no"}:',
           lambda: _in_folder(test_an_unsound_exercise_is_named, {"answer": RIGHT}, "not everything is to do")),
    Mutant("prove_exercises", "first.verdict, first.hint) != (name, \"fail\", hint)",
           'first.verdict) != (name, "fail")',
           lambda: _in_folder(test_an_unsound_exercise_is_named, {"checks": CHECKS.replace('"half", 1)', '"half", 2)')},
                              "with hint 2")),
    Mutant("minillama.course.exercise", "if np.isnan(error).any():", "if False:", _prints_nan_as_wrong),
    Mutant("minillama.course.exercise", "error.max() > atol", "error.max() > 2 * atol + 1",
           lambda: test_close_names_what_is_wrong(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), "error 0.5")),
    Mutant("minillama.course.exercise", "got.dtype != wanted.dtype", "False",
           lambda: test_close_names_what_is_wrong(torch.ones(2), torch.ones(2, dtype=torch.float64), "dtype")),
    Mutant("minillama.course.check", "fails[name][1] + 1 if again", "fails[name][1] if again",
           lambda: _in_folder(test_each_failing_run_shows_the_next_hint_and_a_new_mistake_begins_with_its_own)),
    Mutant("minillama.course.grader", 'if "fail" in verdicts:', "if False:", lambda: _flaw("fail")),
]
