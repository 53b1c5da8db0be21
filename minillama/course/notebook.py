"""`notebook N`: a lesson as a Jupyter notebook (nbformat 4.5), written with nothing but json."""

import json
import sys
from pathlib import Path

from minillama.course.lesson import HEADER, ROOT, read
from minillama.system.files import atomic_write

SETUP = """# minillama: installed for this kernel's Python, or in a folder above this notebook
import sys
from pathlib import Path

sys.path += [str(folder) for folder in Path.cwd().parents if (folder / "minillama").is_dir()]
from minillama.course.notebook import inline
inline(display)"""


def inline(display):
    """Let figures appear under their cell; `display` is what every notebook brings."""
    from minillama import plots

    sys.path.append(str(ROOT))  # a lesson may import what lies beside it

    def receive(picture, alt):
        import matplotlib.pyplot as plt

        plt.close(picture)  # else the notebook draws it once more at the end of the cell
        display(picture)
        print(alt)

    plots._receiver = receive


def notebook(lesson):
    """The notebook as a dictionary. Cells keep their ids; `ascii:` lines are left out."""
    head = [f"# {lesson.number:02} · {lesson.title}", "", *(f"* {key}: {lesson.header[key]}" for key in HEADER
                                                            if key in lesson.header), ""]
    cells = []
    for number, cell in enumerate(lesson.cells):
        text = cell.text
        if cell.kind == "markdown":
            lines = [line for line in text.splitlines() if not line.startswith("ascii:")]
            text = "\n".join((head if number == 0 else []) + lines)
        cells.append(_cell(cell.kind, cell.id, text))
    cells.insert(1, _cell("code", "setup", SETUP))  # behind the question
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": python, "language_info": {"name": "python"}}, "nbformat": 4,
            "nbformat_minor": 5}


def _cell(kind, name, text):
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell


def write_notebook(path, folder="out/lessons"):
    """Write the notebook of a lesson file; returns its path."""
    target = Path(folder, Path(path).stem + ".ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, "w") as file:
        json.dump(notebook(read(path)), file, ensure_ascii=False, indent=1)
        file.write("\n")
    return target
