"""Laws of recordings: a lesson runs apart from its surroundings, and all that it says is kept in its order."""

import subprocess
from pathlib import Path

import pytest
from mutants import Mutant
from test_lesson import BARE_LESSON, written

from minillama.course import recording
from minillama.course.recording import Svg, Text, record

SURROUNDINGS = ("import os, sys\nprint(os.environ.get('MINILLAMA_WEIGHTS'), os.environ['OMP_NUM_THREADS'], '\u00bd')\n"
                "print('aside', file=sys.stderr)\nopen('left', 'w').write('x')\n")
TWICE = "show(picture, 'b')\nprint(2)\n"


def test_a_lesson_runs_alone_without_weights_on_one_thread_and_texts_and_figures_keep_their_order(tmp_path, monkeypatch,
                                                                                                  capfd):
    monkeypatch.setenv("MINILLAMA_WEIGHTS", "somewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.chdir(tmp_path)
    text = BARE_LESSON.replace("x = 6\n", SURROUNDINGS + "x = 6\n").replace("show(picture", "print(1)\nshow(picture")
    found = record(written(tmp_path, text.replace('print(f"You', TWICE + 'print(f"You')).relative_to(tmp_path))
    assert list(found) == ["naive", "agree", "you_should_see"]
    assert found["naive"] == [Text("None 1 \u00bd\nhalf: 3.0\n")], "prints in a row are one text"
    first, figure = found["agree"]
    assert first == Text("1\n") and isinstance(figure, Svg) and figure.alt == "It ends at 4"
    figure, last = found["you_should_see"]
    assert figure.alt == "b" and "<svg" in figure.svg and last == Text("2\nYou should see: 3.0\n")
    assert [path.name for path in tmp_path.iterdir()] == ["05_rms_norm.py"], "what it writes goes with its folder"
    assert capfd.readouterr() == ("", ""), "nothing is said on the way"


def test_the_end_of_what_a_broken_lesson_says_is_the_error(tmp_path, monkeypatch):
    broken = written(tmp_path, BARE_LESSON.replace("x = 6\n", "raise SystemExit('x' * 300 + 'y' * 400)\n"))
    with pytest.raises(RuntimeError, match="^05_rms_norm.py does not run to its end: y{400}$"):
        record(broken)
    asked = []
    monkeypatch.setattr(recording.subprocess, "run", lambda *words, **more: asked.append(more) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(broken, 7)
    assert asked[0]["timeout"] == 7 and recording.LIMIT == 600


def a_figure_is_told_from_a_text():
    def run(command, **more):
        Path(command[-1]).write_text('{"a": [["1"], ["<svg/>", "b"]]}')
        return subprocess.CompletedProcess(command, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.subprocess, "run", run)
        assert recording.record("05_rms_norm.py") == {"a": [Text("1"), Svg("<svg/>", "b")]}


MUTANTS = [Mutant("minillama.course.recording", "Text(*part) if len(part) == 1 else Svg(*part)", "Text(part[0])",
                  a_figure_is_told_from_a_text)]
