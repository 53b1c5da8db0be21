"""Laws of the course: every lesson keeps the rules, runs offline and says its numbers; every exercise is sound."""

import ast
import os
import subprocess
import sys

import pytest
from figure_text import too_small
from lesson_rules import breaches
from prove_exercises import prove

from minillama.course import check, lesson
from minillama.course.exercise import load

QUICK = 2  # so many lessons, the fastest by their own word, run in the quick suite; all of them in the long one
OFFLINE = """import runpy, socket, sys
def refuse(*_, **__):
    raise OSError("a lesson reaches for the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def by_promise():
    """Lesson paths, the shortest `Time:` first; one without a readable header comes last and fails its lint."""
    def seconds(path):
        try:
            return lesson.read(path).seconds
        except (ValueError, KeyError, TypeError):
            return 1e9
    return sorted(lesson.lessons().values(), key=lambda path: (seconds(path), path.name))


PATHS = by_promise()


def test_there_are_lessons_and_exercises():
    assert lesson.lessons() and check.exercises(), f"nothing in {lesson.FOLDER}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_lesson_keeps_the_house_rules(path):
    assert breaches(path) == []


def test_a_phone_shows_every_label_of_the_lessons_figures_large_enough_to_be_read():
    figures = sorted((lesson.FOLDER.parent / "docs" / "lessons").glob("*.svg"))
    assert len(figures) >= len(PATHS)
    small = {path.name: said for path in figures if (said := too_small(path.read_text(encoding="utf-8")))}
    assert not small, f"figures with labels below 10 pixels on a phone: {small}"


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=[pytest.mark.long] if n >= QUICK else [])
                                  for n, p in enumerate(PATHS)])
def test_a_lesson_runs_in_a_fresh_process_offline_and_says_what_you_should_see(path, tmp_path):
    limit = max(60, 3 * lesson.read(path).seconds)  # against hangs, not against slow machines
    root = str(lesson.FOLDER.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(path)], cwd=tmp_path, env=environment, text=True,
                          capture_output=True, timeout=limit)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "You should see: " in done.stdout
    assert any((tmp_path / "out" / "lessons").glob("*.png")), "no figure was shown"


def test_the_network_is_blocked_for_lessons(tmp_path):
    (tmp_path / "call.py").write_text("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')")
    done = subprocess.run([sys.executable, "-c", OFFLINE, tmp_path / "call.py"], capture_output=True, text=True)
    assert "a lesson reaches for the network" in done.stderr


def lines_of_code(solution):
    """Lines with a statement inside the functions of a solution's .py; those of its .cu that are not blank, comments
    or closing braces."""
    count = 0
    for path in check.parts(solution):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            bodies = [node.body[ast.get_docstring(node) is not None:] for node in ast.walk(ast.parse(text))
                      if isinstance(node, ast.FunctionDef)]
            count += len({part.lineno for body in bodies for statement in body for part in ast.walk(statement)
                          if hasattr(part, "lineno")})
        else:
            count += sum(line.strip()[:2] not in ("", "//", "}") for line in text.splitlines())
    return count


@pytest.mark.parametrize("number", check.exercises())
def test_an_exercise_knows_twelve_wrong_answers_or_three_more_than_its_solution_has_lines(number):
    _, solution, checks = check.find(number)
    lines, wrong = lines_of_code(solution), load(checks).WRONG
    assert len({tuple(answer[:2]) for answer in wrong}) >= (12 if lines > 10 else lines + 3), f"{lines} lines"


@pytest.mark.parametrize("number", [pytest.param(n, id=f"{n:02}", marks=[pytest.mark.long] if i >= 4 else [])
                                    for i, n in enumerate(check.exercises())])
def test_stub_is_to_do_solution_passes_and_each_wrong_answer_fails_with_its_hint(number):
    assert prove(number) == []
