"""`notebook N`: a lesson as a Jupyter notebook (nbformat 4.5), written with nothing but json."""

import json
from pathlib import Path

from minillama.course.lesson import FOLDER, HEADER, read
from minillama.system.files import atomic_write

SETUP = """# This notebook was written from minillama's checkout, and finds the package there.
import sys

sys.path.insert(0, {root!r})
from minillama.course.notebook import inline

inline(display)"""


def inline(display):
    """Let figures appear under their cell; `display` is what every notebook brings."""
    from minillama import plots

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
    cells = [_cell("code", "setup", SETUP.format(root=str(FOLDER.parent)))]
    for number, cell in enumerate(lesson.cells):
        text = cell.text
        if cell.kind == "markdown":
            lines = [line for line in text.splitlines() if not line.startswith("ascii:")]
            text = "\n".join((head if number == 0 else []) + lines)
        cells.append(_cell(cell.kind, cell.id, text))
    cells.insert(0, cells.pop(1))  # the question first, then the set-up
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
