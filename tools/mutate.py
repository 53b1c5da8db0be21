"""How many mistakes do the tests notice? Plants random ones and lists those that no test of their module sees.

    python3 run.py mutate 20 7                       10 faults in minillama/, 10 in csrc/cpu, drawn with seed 7
    python3 run.py mutate 50 7 --language python --under minillama/tokenizer --processes 4

Each fault is planted alone, in a private copy of the checkout, and the quick tests of its module run until one fails:
tests/test_<module>*.py first, then the other tests that import it. A crash and a test without end count as noticed, a
fault of which nothing is known after `--limit` seconds does not. What does not compile, or compiles to the same
program, is replaced by another. A test that fails on the untouched copy too ends the run: it would notice everything.
Exit code 1 if more than 6 of 100 survive; harmless ones count, for nobody can tell them apart without looking.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import mutate_cpp
import mutate_python
from mutate_workshop import Workshop

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 0.06  # share of survivors
HEAVY = ("pytest", "numpy", "torch", "regex", "matplotlib", "sentencepiece")  # imported once, for all runs of tests


class Fault(NamedTuple):
    """Text [start, end) of a file of the tree, and what is to stand there."""

    path: str
    start: int
    end: int
    new: str

    def planted(self, text):
        return text[:self.start] + self.new + text[self.end:]

    def told(self, text):
        """file:line: before -> after"""
        line = text.count("\n", 0, self.start) + 1
        first = text.rindex("\n", 0, self.start) + 1 if "\n" in text[:self.start] else 0
        last = text.find("\n", self.end)
        before, after = text[first:last], self.planted(text)[first:last + len(self.new) - self.end + self.start]
        return f"{self.path}:{line}: {' '.join(before.split())}  ->  {' '.join(after.split())}"


def draw_faults(root, language, under, seed):
    """All faults of a language's files, in an order that the seed decides."""
    patterns, find = {"python": (["minillama/**/*.py"], mutate_python.faults_in),
                      "cpp": (["csrc/cpu/*.cpp", "csrc/cpu/*.h"], mutate_cpp.faults_in)}[language]
    paths = sorted(path for pattern in patterns for path in root.glob(pattern))
    names = [name for name in (path.relative_to(root).as_posix() for path in paths) if name.startswith(under)]
    faults = [Fault(name, *place) for name in names for place in find((root / name).read_text(encoding="utf-8"))]
    random.Random(f"{seed} {language}").shuffle(faults)
    return faults


# ---- the command


def examine(root, language, count, seed, under="", processes=1, limit=180):
    """Plant `count` faults -> [(file:line: before -> after, the test that noticed it or "")], fewer where there are
    fewer. The same faults for a seed, whatever the number of processes."""
    faults, found = draw_faults(root, language, under, seed), []
    with tempfile.TemporaryDirectory(prefix="minillama-mutate-") as place:
        shops = [Workshop(Path(place) / str(k), root, language == "cpp") for k in range(processes)]
        while len(found) < count and faults:
            batch, faults = faults[:count - len(found)], faults[count - len(found):]
            found += filter(None, side_by_side(shops, batch, limit) if processes > 1 else
                            [try_and_tell(shops[0], fault, limit) for fault in batch])
    return found


def try_and_tell(shop, fault, limit):
    """None where the fault makes no other program; else (what it is, the test that noticed it or "")."""
    told = fault.told((shop.folder / fault.path).read_text(encoding="utf-8"))
    killer = shop.try_fault(fault, limit)
    if killer is None:
        return None
    told += f"  (after {limit:g} s not all tests had run)" if shop.cut_off else ""
    print(f"noticed   {told}  [{killer}]" if killer else f"SURVIVES  {told}", flush=True)
    return told, killer


def side_by_side(shops, faults, limit):
    """The results of `try_and_tell`, in order; each shop is a process and takes every n-th fault."""
    children = []
    for k, shop in enumerate(shops):
        child = os.fork()
        if not child:
            code = 1
            try:
                results = [try_and_tell(shop, fault, limit) for fault in faults[k::len(shops)]]
                (shop.folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
                code = 0
            except SystemExit as end:
                print(end, file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(child)
    if any([os.waitpid(child, 0)[1] for child in children]):  # all of them, before one is looked at
        raise SystemExit("mutate: a process ended in an error")
    found = [None] * len(faults)
    for k, shop in enumerate(shops):
        found[k::len(shops)] = json.loads((shop.folder / "results.json").read_text(encoding="utf-8"))
    return found


def main(argv=None):
    """Exit code: 0, or 1 where too many survive."""
    parser = argparse.ArgumentParser(prog="run.py mutate", description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int, metavar="N", help="faults to plant")
    parser.add_argument("seed", type=int, metavar="SEED", help="which ones")
    parser.add_argument("--language", choices=("python", "cpp"), help="only in minillama/, or only in csrc/cpu")
    parser.add_argument("--under", default="", help="only in files whose path begins so")
    parser.add_argument("--processes", type=int, default=1, help="copies of the checkout at work at once")
    parser.add_argument("--limit", type=float, default=180, help="seconds of tests for one fault")
    options = parser.parse_args(argv)
    if options.count < 1 or options.processes < 1:
        parser.error("N and --processes: at least 1")
    if not hasattr(os, "fork"):
        parser.error("it needs a system with fork: Linux or macOS")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped run leaves no test at work
    for name in HEAVY:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    languages = [options.language] if options.language else ["python", "cpp"]
    found = []
    for index, language in enumerate(languages):
        count = options.count // len(languages) + (index < options.count % len(languages))
        if count:
            found += examine(ROOT, language, count, options.seed, options.under, options.processes, options.limit)
    survivors = [told for told, killer in found if not killer]
    print(f"\n{len(survivors)} of {len(found)} survive", *survivors, sep="\n  ")
    return int(len(survivors) > ALLOWED * len(found))


if __name__ == "__main__":
    sys.exit(main())
