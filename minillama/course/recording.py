"""A lesson run once in a process of its own, for pages: what each cell printed, and its figures as SVG."""

import json
import os
import subprocess
import sys
import tempfile
import typing
from pathlib import Path

from minillama.course import lesson

LIMIT = 600  # seconds for one lesson


class Text(typing.NamedTuple):
    """What a cell printed, up to the next figure."""

    text: str


class Svg(typing.NamedTuple):
    """A figure: SVG that takes the ink of its page, and the claim in words."""

    svg: str
    alt: str


def record(path, limit=LIMIT):
    """{id of a code cell: [Text or Svg, ...]}. A lesson that fails is an error with the end of its traceback."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(lesson.FOLDER.parent),
                   "PYTHONIOENCODING": "utf-8"}
    environment.pop("MINILLAMA_WEIGHTS", None)  # a page is the same where there are real weights and where not
    with tempfile.TemporaryDirectory() as place:  # what the lesson writes into out/ stays there
        file = Path(place, "recording.json")
        command = [sys.executable, "-c", "from minillama.course.recording import child; child()",
                   str(Path(path).resolve()), str(file)]
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            raise RuntimeError(f"{Path(path).name} does not run to its end: {done.stderr.strip()[-400:]}")
        found = json.loads(file.read_text(encoding="utf-8"))
    return {key: [Text(*part) if len(part) == 1 else Svg(*part) for part in parts] for key, parts in found.items()}


def child():
    """In the process of its own: run the lesson named in argv, write what came out as JSON."""
    from minillama.plots import svg

    read = lesson.read(sys.argv[1])
    run, recorded = lesson.Run(read), {}
    for cell in read.cells:
        if cell.kind != "code":
            continue
        parts = recorded[cell.id] = []

        def take(part, parts=parts):
            if not isinstance(part, str):
                parts.append((svg(part.picture, part.alt), part.alt))
            elif parts and len(parts[-1]) == 1:
                parts[-1] = (parts[-1][0] + part,)
            else:
                parts.append((part,))

        run.cell(cell, take)
    Path(sys.argv[2]).write_text(json.dumps(recorded), encoding="utf-8")
