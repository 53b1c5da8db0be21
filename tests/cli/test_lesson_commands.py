"""The commands for learners hand on what was typed, and end with the exit code of what they called."""

import pytest
from mutants import Mutant

from minillama.cli import lesson_commands
from minillama.cli.command_line import build_parser, main
from minillama.cli.lesson_commands import run_check
from minillama.course import check, lesson

NUMBER = min(check.exercises())


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What was called, with what; each call returns its place in the list, plus 40. The learner's place is empty."""
    calls = []
    monkeypatch.setattr(check.Progress.__init__, "__defaults__", (tmp_path / "progress.json",))
    for module, names in ((lesson_commands, ("step", "list_lessons", "write_notebook", "build")),
                          (check, ("check", "watch", "show_solution", "check_all"))):
        for name in names:
            monkeypatch.setattr(module, name, lambda *given, _name=name, **named: calls.append(
                (_name, *given, *named.items())) or 39 + len(calls))
    return calls


@pytest.mark.parametrize(("words", "call"), [
    (["lesson"], ("list_lessons",)), (["lesson", "5"], ("step", lesson.find(5))),
    (["check", str(NUMBER)], ("check", NUMBER)), (["check", str(NUMBER), "--watch"], ("watch", NUMBER)),
    (["check", str(NUMBER), "--solution"], ("show_solution", NUMBER)), (["check", "--all"], ("check_all",)),
    (["check", "--watch", "--solution", str(NUMBER)], ("show_solution", NUMBER))])
def test_each_command_calls_what_it_names_and_ends_with_its_code(called, words, call):
    assert main(words) == 40 and called == [call]


@pytest.mark.parametrize(("words", "call"), [
    (["notebook", "5"], ("write_notebook", lesson.find(5))), (["book"], ("build", "out/book", ("only", []))),
    (["book", "5", "07", "--out", "there"], ("build", "there", ("only", [5, 7])))])
def test_what_is_written_is_told_on_stdout_and_is_no_exit_code(called, capsys, words, call):
    assert main(words) == 0 and called == [call] and capsys.readouterr() == ("40\n", "")


def test_check_without_a_number_grades_the_exercise_of_the_lesson_read_or_graded_last(called):
    assert main(["check"]) == 40 and called == [("check", NUMBER)], "of a reader who has read nothing"
    for number in (7, 5):
        main(["lesson", str(number)])
        main(["check"])
        assert called[-2:] == [("step", lesson.find(number)), ("check", number)]
    check.Progress().keep(last=8)
    main(["check"])
    assert called[-1] == ("check", 8)
    check.Progress().keep(last=99)
    main(["check"])
    assert called[-1] == ("check", NUMBER), "a lesson without an exercise"


def test_a_lesson_is_read_where_the_place_cannot_be_kept(called, tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    monkeypatch.setattr(check.Progress.__init__, "__defaults__", (tmp_path / "out" / "progress.json",))
    assert main(["lesson", "5"]) == 40


def test_no_page_of_a_book_is_made_where_one_number_is_wrong(called, capsys):
    assert main(["book", "5", "77"]) == 2 and not called
    assert "there is no lesson 77" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["check"], ["check", "5"]])
def test_without_exercises_one_line_says_where_they_live(monkeypatch, capsys, words):
    monkeypatch.setattr(check, "exercises", lambda folder=None: {})
    assert main(words) == 2
    assert "they live in minillama's checkout" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["notebook"], ["lesson", "5", "7"], ["check", "5", "7"]])
def test_a_missing_or_further_number_is_a_wrong_use(called, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert not called


def _shows_the_solution():
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "show_solution", shown.append)
        run_check(build_parser("check").parse_args(["check", str(NUMBER), "--solution"]))
    assert shown == [NUMBER]


def _a_lesson_is_noted():
    noted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check.Progress, "keep", lambda self, **changes: noted.append(changes))
        patch.setattr(lesson_commands, "step", lambda path: 0)
        lesson_commands.run_lesson(build_parser("lesson").parse_args(["lesson", "7"]))
    assert noted == [{"last": 7}]


MUTANTS = [Mutant("minillama.cli.lesson_commands", "if arguments.solution:", "if arguments.all:", _shows_the_solution),
           Mutant("minillama.cli.lesson_commands", "keep(last=number)", "keep(last=None)", _a_lesson_is_noted)]
