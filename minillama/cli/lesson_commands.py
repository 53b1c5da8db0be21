"""Commands for learners: lessons in the terminal, as notebook and as book, and the grader."""

from minillama.cli.flags import command
from minillama.course import check, lesson
from minillama.course.book import build
from minillama.course.notebook import write_notebook
from minillama.course.stepper import list_lessons, step


def add_lesson(commands):
    """lesson [N]"""
    parser = command(commands, "lesson", run_lesson, "a lesson, step by step, in this terminal")
    parser.add_argument("number", nargs="?", metavar="N", help="its number; without it, a list")


def add_check(commands):
    """check [N] [--solution] [--watch], or check --all"""
    parser = command(commands, "check", run_check, "grade your answer to a lesson's exercise")
    parser.add_argument("number", nargs="?", metavar="N", help="its number; without it, that of the lesson read last")
    parser.add_argument("--solution", action="store_true", help="print a solution and where it lies")
    parser.add_argument("--watch", action="store_true", help="grade again at every save, until Ctrl-C")
    parser.add_argument("--all", action="store_true", help="one line for every exercise")


def run_lesson(arguments):
    """Lead through a lesson (`stepper.step`), or list what there is."""
    if arguments.number is None:
        return list_lessons()
    path = lesson.find(lesson.number_of(arguments.number))
    if (number := int(path.name[:2])) in check.exercises():  # a lesson that was read: `check` alone grades its exercise
        check.Progress().keep(last=number)
    return step(path)


def add_notebook(commands):
    """notebook N"""
    notebook = command(commands, "notebook", run_notebook, "a lesson as a Jupyter notebook, in out/lessons/")
    notebook.add_argument("number", metavar="N", help="the lesson's number")


def add_book(commands):
    """book [N ...] [--out DIR]"""
    book = command(commands, "book", run_book, "all lessons as pages with formulas, figures and search")
    book.add_argument("number", nargs="*", metavar="N", help="only these lessons; without them, all")
    book.add_argument("--out", default="out/book", metavar="DIR", help="default: %(default)s")


def run_notebook(arguments):
    """Write the notebook and say where (`notebook.write_notebook`)."""
    print(write_notebook(lesson.find(lesson.number_of(arguments.number))))


def run_book(arguments):
    """Run every lesson and write its page (`book.build`)."""
    only = [lesson.read(lesson.find(lesson.number_of(text))).number for text in arguments.number]
    print(build(arguments.out, only=only))


def run_check(arguments):
    """Grade (`check.check`); exit code 1 where a check failed."""
    if arguments.all:
        return check.check_all()
    number = lesson.number_of(arguments.number) if arguments.number else check.Progress().resume(check.exercises())
    if arguments.solution:
        return check.show_solution(number)
    return check.watch(number) if arguments.watch else check.check(number)
