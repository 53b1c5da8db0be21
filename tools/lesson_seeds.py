"""`run.py lesson N --seeds 3`: do a lesson's headline numbers hold for other seeds than those it was written with?

The headline is the lesson's closing line, `You should see: ...`. Run n is the lesson with n * 1000 added to each seed
that it sets, in `random`, numpy and torch; run 0 is the lesson as it stands. A number that only one seed gives has a
wide spread here, or its assertion fails.
"""

import argparse
import ast
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from minillama.course import lesson

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?")
CLOSING = "You should see: "


def compare(path, runs, say=print):
    """Run a lesson with `runs` seeds and say each headline number's mean and spread (standard deviation)."""
    lines, numbers = [], []
    for n in range(runs):
        line, broken = run_with_seeds_moved(path, 1000 * n)
        lines.append(line)
        numbers.append([float(number.replace(",", "")) for number in NUMBER.findall(line)])
        say("\n".join([f"seed {n}: {line}", *(f"        does not hold: {claim}" for claim in broken)]))
    if len({NUMBER.sub("#", line) for line in lines}) > 1:
        say("the lines differ in their words, so no means are taken")
        return
    for place, values in enumerate(zip(*numbers, strict=True), 1):
        say(f"number {place}: mean {statistics.mean(values):.4g}, spread {statistics.stdev(values):.2g}")


def run_with_seeds_moved(path, by):
    """(closing line, assertions that failed) of a lesson, run in a process and a folder of its own."""
    root = str(lesson.FOLDER.parent)
    with tempfile.TemporaryDirectory() as place:  # what the lesson writes into out/ stays there
        done = subprocess.run([sys.executable, __file__, "--child", str(Path(path).resolve()), str(by)], cwd=place,
                              env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(path).name} does not run to its end: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout)


def move_seeds(by):
    """From here on in this process each seed is another: `by` is added to a number, and written behind a text."""
    import numpy
    import torch

    def moved(set_seed):
        return lambda seed=None: set_seed(seed + by if isinstance(seed, int) else seed)

    class Moved(random.Random):
        def seed(self, a=None, version=2):
            super().seed(a + by if isinstance(a, int) else f"{a}{by or ''}" if isinstance(a, str) else a, version)

    class Generator(torch.Generator):
        def manual_seed(self, seed):
            return super().manual_seed(seed + by)

    random.Random, random.seed, torch.Generator = Moved, moved(random.seed), Generator
    torch.manual_seed, numpy.random.default_rng = moved(torch.manual_seed), moved(numpy.random.default_rng)


class NotedAssertions(ast.NodeTransformer):
    """Each `assert` becomes a note of its failure in the list `broken`: the run goes on to its closing line."""

    def visit_Assert(self, node):
        claim = ast.unparse(node.test)
        return ast.parse(f"if not ({claim}): broken.append({claim!r})").body[0]


def child(path, by):
    """In the process of its own: run the lesson with moved seeds and print what `run_with_seeds_moved` returns."""
    run, printed, broken = lesson.Run(lesson.read(path)), [], []
    move_seeds(by)
    run.module.broken = broken
    for cell in (cell for cell in run.lesson.cells if cell.kind == "code"):
        tree = ast.fix_missing_locations(NotedAssertions().visit(ast.parse(cell.text)))
        printed.append(run.cell(cell._replace(text=ast.unparse(tree))).text)
    line = next(line for line in reversed("".join(printed).splitlines()) if CLOSING in line)
    print(json.dumps([line.split(CLOSING)[1], broken]))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="run.py lesson", description=__doc__.split("\n")[0])
    parser.add_argument("number", metavar="N", type=lesson.number_of, help="the lesson's number")
    parser.add_argument("--seeds", required=True, type=int, metavar="COUNT", help="how many runs, at least 2")
    chosen = parser.parse_args(argv)
    if chosen.seeds < 2:
        parser.error(f"--seeds {chosen.seeds}: a spread needs at least 2")
    compare(lesson.find(chosen.number), chosen.seeds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main()
