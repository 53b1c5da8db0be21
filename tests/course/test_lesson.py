"""Laws of lessons in the terminal: what stands in the file is what is run and shown, line for line."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.cli.command_line import main
from minillama.course import lesson, stepper

LESSON = r'''# %% [markdown] question
# # 05 · Halves
# Covers: `minillama/rms_norm.py`, `tests/test_rms_norm.py`
# Needs: 00
# Time: 3 s
# Teaches: halves
# Paper: [A and B 2019](https://arxiv.org/abs/1910.07467), equation 4
#
# **Question.** What is $\frac{x}{2}$?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $x$ | `x` | | a number |
# %% naive
x = 6
print("half:", x / 2)
# %% [markdown] formula
# Here it **is**:
#
# $$y = \frac{x}{2}$$
# ascii: y = x / 2
# %% agree
from minillama.plots import OURS, figure, show
from minillama.rms_norm import RMSNorm

assert RMSNorm(3).weight.sum() == x / 2
picture, axes = figure("A line", "x", "y")
axes.plot([0, 1, 2], [0, 1, 4], color=OURS)
show(picture, f"It ends at {x - 2}")
# %% you_should_see
print(f"You should see: {x / 2}")
assert x == 6
'''
# for processes that need not wait for PyTorch
BARE_LESSON = LESSON.replace("from minillama.rms_norm import RMSNorm\n", "").replace("RMSNorm(3).weight.sum()", "3")


def written(folder, text=LESSON, name="05_rms_norm.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("text", ["5", "05", "05_rms_norm", "05_rms_norm.py", "lessons/05_rms_norm.py"])
def test_a_lesson_goes_by_its_number_however_it_is_written(text):
    assert lesson.number_of(text) == 5


@pytest.mark.parametrize("text", ["", "rope", "-1", "123", "x5"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="give its number"):
        lesson.number_of(text)


def test_a_missing_lesson_says_whether_it_is_planned_and_what_is_there(tmp_path):
    written(tmp_path)
    assert lesson.find(5, tmp_path).name == "05_rms_norm.py"
    with pytest.raises(ValueError, match="lesson 03_wordpiece_unigram is planned, not written yet: written are 05"):
        lesson.find(3, tmp_path)
    with pytest.raises(ValueError, match="there is no lesson 77: written are 05"):
        lesson.find(77, tmp_path)
    with pytest.raises(ValueError, match="written are none$"):
        lesson.find(5, tmp_path / "nowhere")


def test_neighbours_skip_what_is_not_written(tmp_path):
    for name in ("01_bpe.py", "05_rms_norm.py", "08_attention.py"):
        written(tmp_path, "", name)
    assert [lesson.neighbours(n, tmp_path) for n in (1, 5, 8)] == [(None, 5), (1, 8), (5, None)]


def test_cells_are_cut_where_they_begin_and_keep_their_line_numbers(tmp_path):
    text = "\n# %% [markdown] a\n# one\n#\n#  two\n\n# %% b\n\n\nx = 1\n\n# %% c\ny = '''\n# %%%\n'''\n"
    cells = lesson.split(text.replace("# %%%", "#  %%"))
    assert [(c.kind, c.id, c.text, c.line) for c in cells] == [
        ("markdown", "a", "one\n\n two", 3), ("code", "b", "x = 1", 10), ("code", "c", "y = '''\n#  %%\n'''", 13)]
    assert [text.splitlines()[c.line - 1] for c in cells] == ["# one", "x = 1", "y = '''"]


@pytest.mark.parametrize(("text", "words"), [
    ("", "begins with a line"), ("x = 1\n# %% a\n", "begins with a line"), ("# %% a b\n", "line 1"),
    ("# %% [raw] a\n", "line 1"), ("# %% [markdown] a\n# fine\nprose\n", "line 3: prose is a comment"),
    ("# %% [markdown] a\n#no blank\n", "line 2: prose is a comment"),
])
def test_a_file_that_is_no_lesson_names_its_line(text, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        lesson.split(text)


def test_the_header_is_read_and_cut_out(tmp_path):
    read = lesson.read(written(tmp_path))
    assert (read.number, read.title, read.seconds, read.header["Needs"]) == (5, "Halves", 3.0, "00")
    assert read.cells[0].text.startswith("**Question.**") and len(read.cells) == 5


def test_cells_share_a_namespace_and_give_back_what_they_printed_and_showed(tmp_path):
    read = lesson.read(written(tmp_path))
    run = lesson.Run(read)
    outputs = [run.cell(cell) for cell in read.cells if cell.kind == "code"]
    assert [output.text for output in outputs] == ["half: 3.0\n", "", "You should see: 3.0\n"]
    (shown,) = outputs[1].parts
    assert shown.alt == "It ends at 4" and all(output.seconds >= 0 for output in outputs)


def test_a_lesson_believes_to_be_the_program_and_the_program_gets_its_place_back(tmp_path):
    text = LESSON.replace("x = 6", "import dataclasses, sys\n@dataclasses.dataclass\nclass P:\n    a: 'int' = 6\n"
                                   "x = P().a\nassert sys.modules[__name__].x == 6 and __name__ == '__main__'")
    before = sys.modules["__main__"], sys.stdout
    read = lesson.read(written(tmp_path, text))
    assert lesson.Run(read).cell(read.cells[1]).text == "half: 3.0\n"
    with pytest.raises(ZeroDivisionError):
        lesson.Run(read).cell(lesson.Cell("code", "bad", "1 / 0", 3))
    assert before == (sys.modules["__main__"], sys.stdout)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stepped(path, keys=None):
    """Exit code and text of the stepper: keys typed at a terminal, or None for a pipe."""
    out = io.StringIO() if keys is None else Terminal()
    return stepper.step(path, io.StringIO("") if keys is None else Terminal(keys), out), out.getvalue()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lessons"


def test_a_pipe_gets_the_whole_lesson_and_no_question(place):
    code, text = stepped(written(place))
    assert code == 0 and "[Enter]" not in text and "\033" not in text
    order = ["05 · Halves", "needs 00 · about 3 s", "What is x/2?", "symbol", "x = 6", "half: 3.0", "    y = x / 2",
             "A line", "figure: out/lessons/05_rms_norm-1.png: It ends at 4", "You should see: 3.0"]
    places = [text.index(part) for part in order]
    assert places == sorted(places) and Path("out/lessons/05_rms_norm-1.png").stat().st_size > 2000


def test_keys_run_skip_go_back_and_quit(place):
    path = written(place)
    code, text = stepped(path, "\nb\n\n\nq\n")  # run naive; back at agree; run naive and agree; quit
    assert code == 0 and text.count("half: 3.0") == 2 and "You should see: 3" not in text
    code, text = stepped(path, "s\n\n\n\n")
    assert "half: 3.0" not in text and "NameError: name 'x' is not defined" in text and "[Enter] run" in text
    assert stepped(path, "")[0] == 0, "the end of input quits"


def test_a_figure_is_opened_at_o(place, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    _, text = stepped(written(place), "o\n\n\no\nq\n")
    assert "no figure yet" in text and len(opened) == 1 and opened[0].endswith("05_rms_norm-1.png")
    path = written(place, LESSON.replace("show(picture,", "show(picture, 'twice')\nshow(picture,"))
    stepped(path, "\n\nOpen\nq\n")
    assert opened[1:] == [Path("out/lessons/05_rms_norm-2.png").resolve().as_uri()], "the last one"


def test_a_traceback_shows_the_lessons_own_lines_and_no_others(place):
    path = written(place, LESSON.replace("x = 6\n", "def f():\n    return 1 / 0  # here\n\n\nx = f()\n"))
    code, text = stepped(path)
    assert code == 1 and "return 1 / 0  # here" in text and "line 16" in text and "ZeroDivisionError" in text
    assert "minillama/course/lesson.py" not in text and "half" not in text.split("ZeroDivisionError")[1]
    assert "RMSNorm" not in text, "in a pipe nothing comes after a cell that failed"
    code, text = stepped(path, "\n\nq\n")
    assert code == 0 and "RMSNorm" in text and "(Enter runs the next cell all the same, b goes back)" in text
    code, text = stepped(path, "\nskip\nSkip\n")
    assert code == 0, "at a terminal the reader has seen it"


def test_a_key_may_be_spelled_out_and_another_one_asks_again(place):
    path = written(place)
    _, text = stepped(path, "skip\n x\n back\n\nQUIT\n")
    assert text.count("half: 3.0") == 1 and text.count("[Enter] run") == 5 and "figure:" not in text
    _, text = stepped(path, "b\n\nq\n")
    assert text.count("half: 3.0") == 1 and text.count("05 · Halves") == 1, "before the first there is none"


def test_lines_and_the_title_fill_the_screen_up_to_88_columns(place, monkeypatch):
    for columns, width in ((60, 60), (88, 88), (200, 88), (12, 0)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = stepped(written(place))[1].splitlines()
        facts = "needs 00 · about 3 s"
        assert lines[0] == "05 · Halves" + facts.rjust(max(width - 11, len(facts) + 2))
        assert lines[1:4] == ["Teaches: halves", lines[2],
                              "Paper: A and B 2019 <https://arxiv.org/abs/1910.07467>, equation 4"]
        rules = [line for line in lines if line.startswith("──")]
        assert rules == [rule for number, name in ((2, "naive"), (4, "agree"), (5, "you_should_see"))
                         for rule in (f"── {name} · cell {number} of 5 ".ljust(88, "─"), "─" * 88)]


CODE = '''if x and "a # b":  # a 'note'
    y = 12 + len("""one

two""")
'''
SHADES = {"if": stepper.CODE, "and": stepper.CODE, '"a # b"': "\033[32m", "# a 'note'": stepper.SOFT, "12": "\033[33m",
          '"""one': "\033[32m", 'two"""': "\033[32m"}


def test_keywords_texts_numbers_and_comments_have_their_colours_and_each_line_ends_its_own():
    wanted = CODE.rstrip("\n")
    for part, shade in SHADES.items():
        assert wanted.count(part) == 1
        wanted = wanted.replace(part, f"{shade}{part}{stepper.END}")
    assert stepper.highlighted(CODE.rstrip("\n")) == wanted


def test_the_end_names_the_exercise_unless_a_cell_failed_and_the_next_lesson(place):
    first = written(place)
    assert stepped(first)[1].splitlines()[-1] == ""
    last = written(place, LESSON.replace("05 · Halves", "07 · Thirds"), "07_rope.py")
    assert stepped(first)[1].splitlines()[-2:] == ["", "next: python3 run.py lesson 7"]
    (place / "exercises").mkdir()
    for path in (first, last):
        (place / "exercises" / f"ex{path.name}").write_text("")
    exercise = "exercise: lessons/exercises/ex{}, then python3 run.py check {}"
    assert stepped(first)[1].splitlines()[-2:] == [exercise.format(first.name, 5), "next: python3 run.py lesson 7"]
    assert stepped(last)[1].splitlines()[-2:] == ["", exercise.format(last.name, 7)]
    code, text = stepped(first, "s\n\n\n")
    assert "NameError" in text and "exercise:" not in text and text.splitlines()[-1] == "next: python3 run.py lesson 7"


def test_prose_is_on_the_screen_before_torch_is_imported(place):
    code = ("import sys; from minillama.course import lesson, stepper; out = []\n"
            "def run(self, run, cell): assert 'torch' not in sys.modules and 'numpy' not in sys.modules; return True\n"
            f"stepper._Stage.run = run; stepper.step({str(written(place))!r})")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=lesson.FOLDER.parent, capture_output=True)


PLANNED = [(("lesson", name[:2]), "planned") for name in lesson.COURSE if not (lesson.FOLDER / f"{name}.py").exists()]


@pytest.mark.parametrize(("words", "said"), [*PLANNED[:1], (("lesson", "rope"), "give its number"),
                                             (("lesson", "77"), "written are")])
def test_a_wrong_number_is_one_line(words, said, capsys):
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_without_a_number_the_lessons_are_listed(capsys):
    assert main(["lesson"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(lesson.lessons()) + 1


def test_highlighting_changes_no_letter():
    for path in lesson.lessons().values():
        for cell in lesson.read(path).cells:
            if cell.kind == "code":
                shown = stepper.highlighted(cell.text)
                assert re.sub(r"\033\[[\d;]*m", "", shown) == cell.text and "\033[" in shown


def _in_folder(law, *arguments):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder), *arguments)


MUTANTS = [
    Mutant("minillama.course.lesson", "min((n for n in written if n > number)",
           "max((n for n in written if n > number)",
           lambda: _in_folder(test_neighbours_skip_what_is_not_written)),
    Mutant("minillama.course.lesson", 'compile("\\n" * (cell.line - 1) + cell.text', "compile(cell.text",
           lambda: _in_folder(_numbered_as_in_the_file)),
    Mutant("minillama.course.lesson", "start + 2 + skip", "start + 1 + skip",
           lambda: _in_folder(test_cells_are_cut_where_they_begin_and_keep_their_line_numbers)),
]


def _numbered_as_in_the_file(folder):
    read = lesson.read(written(folder, LESSON.replace("x = 6", "x = 1 / 0")))
    with pytest.raises(ZeroDivisionError) as caught:
        lesson.Run(read).cell(read.cells[1])
    assert caught.traceback[-1].lineno + 1 == 15
