"""The house rules of a lesson, as one function that names every breach."""

import ast
import re
from pathlib import Path

from lesson_symbols import unnamed

from minillama.course.lesson import COURSE, FOLDER, HEADER, read

CELLS, CODE_LINES, WORDS, CELL_LINES, COLUMNS, SECONDS = 12, 150, 900, 30, 88, 60
LONG = re.compile(r"# (\$\$|ascii:|Covers:|Teaches:|Paper:)")  # formulas and the header may use 120 columns
BANNED_MODULES = set("socket urllib http requests ftplib subprocess IPython".split())
BANNED_WORDS = re.compile(r"\b(obviously|trivially|needless to say)\b", re.IGNORECASE)


def breaches(path):
    """Sentences on what in a lesson file breaks a rule; an empty list is a lesson in order."""
    path = Path(path)
    try:
        lesson = read(path)
        return [f"{path.name}: {said}" for rule in (_header, _cells, _prose, _formulas, unnamed, _code, _end)
                for said in rule(lesson)]
    except (ValueError, SyntaxError) as error:
        return [f"{path.name}: {error}"]


def _header(lesson):
    if tuple(lesson.header) != HEADER:
        yield f"header lines are {', '.join(HEADER)}, in this order; here are {', '.join(lesson.header)}"
        return
    if lesson.path.stem not in COURSE or lesson.number != int(lesson.path.name[:2]):
        yield f"number {lesson.number} and file name are not those of the course"
    if not re.fullmatch(r"\d+ s", lesson.header["Time"]) or not 0 < lesson.seconds <= SECONDS:
        yield f"`Time: {lesson.header['Time']}` is not a whole number of seconds up to {SECONDS}"
    needs = lesson.header["Needs"]
    if needs != "-" and not all(re.fullmatch(r"\d\d", n) and int(n) < lesson.number for n in needs.split(", ")):
        yield f"`Needs: {needs}` is neither `-` nor numbers of earlier lessons, as in `00, 05`"
    for place in re.findall(r"`([^`]+)`", lesson.header["Covers"]):
        if not (FOLDER.parent / place).exists():
            yield f"covers {place}, which does not exist"
    first = lesson.cells[0].text
    if "**Question.**" not in first or "?" not in first:
        yield "the first cell asks no `**Question.** ...?`"
    if not re.search(r"^\| symbol \|.*\n\|[-|]+\|\n\| ", first, re.MULTILINE):
        yield "the first cell has no table `| symbol | in code | shape | meaning |`"


def _cells(lesson):
    ids = [cell.id for cell in lesson.cells]
    for cell in lesson.cells:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", cell.id) or ids.count(cell.id) > 1:
            yield f"line {cell.line - 1}: the id {cell.id!r} is not one lower-case word of its own"
        if not cell.text.strip():
            yield f"cell {cell.id} is empty"
        if (count := len(cell.text.splitlines())) > CELL_LINES:
            yield f"cell {cell.id} has {count} lines, allowed are {CELL_LINES}"
    if len(ids) > CELLS:
        yield f"{len(ids)} cells, allowed are {CELLS}"
    for number, line in enumerate(lesson.path.read_text(encoding="utf-8").splitlines(), 1):
        if len(line) > (120 if LONG.match(line) else COLUMNS):
            yield f"line {number} has {len(line)} columns, allowed are {COLUMNS}"


def _prose(lesson):
    prose = "\n".join(cell.text for cell in lesson.cells if cell.kind == "markdown")
    if (count := len(prose.split())) > WORDS:
        yield f"{count} words of prose, allowed are {WORDS}"
    for match in BANNED_WORDS.finditer(prose):
        yield f"{match[0]!r} helps nobody for whom it is not"


def _formulas(lesson):
    for cell in lesson.cells:
        if cell.kind != "markdown":
            continue
        lines = cell.text.splitlines()
        for number, line in enumerate(lines):
            if "$$" in line and not re.fullmatch(r"\$\$[^$]+\$\$", line):
                yield f"line {cell.line + number}: a displayed formula stands alone in its line, between $$ and $$"
            elif "$$" in line and not "".join(lines[number + 1:number + 2]).startswith("ascii: "):
                yield f"line {cell.line + number}: after a formula comes `ascii: ...`, for terminals"
        for paragraph in re.split(r"\n\s*\n", re.sub(r"\$\$.*\$\$|`[^`\n]*`", "", cell.text)):
            if paragraph.count("$") % 2:
                yield f"cell {cell.id}: a $ without its partner: {paragraph.strip()[:50]!r}"


def _code(lesson):
    code = [cell for cell in lesson.cells if cell.kind == "code"]
    count = sum(bool(line.strip()) for cell in code for line in cell.text.splitlines())
    if count > CODE_LINES:
        yield f"{count} lines of code, allowed are {CODE_LINES}"
    for cell in code:
        for node in ast.walk(ast.parse("\n" * (cell.line - 1) + cell.text)):  # a magic is a SyntaxError with its line
            if said := _banned(node):
                yield f"line {node.lineno}: {said}"
    text = "\n".join(cell.text for cell in code)
    for wanted, why in (("minillama", "the library is never imported"), ("assert ", "nothing is asserted"),
                        ("show(", "no figure is shown")):
        if wanted not in text:
            yield why


def _banned(node):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
        bad = BANNED_MODULES & {name.split(".")[0] for name in names}
        return f"imports {', '.join(bad)}" if bad else None
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return f"calls {name}" if name in ("input", "breakpoint", "exec", "eval", "plt.show", "exit") else None
    return "touches sys.path" if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path" else None


def _end(lesson):
    last = lesson.cells[-1]
    if last.kind != "code" or "You should see" not in last.text or "assert " not in last.text:
        yield "the last cell prints `You should see: ...` and asserts it"
    exercise = next((cell for cell in lesson.cells if cell.id == "exercise"), None)
    stub = lesson.path.parent / "exercises" / f"ex{lesson.path.name}"
    if stub.exists() != (exercise is not None):
        yield f"the cell `exercise` and {stub.name} come together"
    if exercise and not re.search(rf"python3 run.py check 0?{lesson.number}\b", " ".join(exercise.text.split())):
        yield f"the cell `exercise` does not say `python3 run.py check {lesson.number}`"
