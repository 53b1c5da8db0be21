"""Starting up: seconds and memory of a fresh process that imports the model's class, beside transformers.

The limit is a process that imports torch and nothing else: whoever computes with torch pays that first.
"""

import os
import subprocess
import sys
import time

import _rounds

CODE = {
    "ours": "import minillama; from minillama.transformer import Transformer",
    "peer": "import transformers; from transformers import LlamaForCausalLM",
    "limit": "import torch",
}
MEASURES = ((0, "import, wall clock", "s"), (1, "import, CPU time", "s"), (2, "import, peak memory", "MB"))


def fresh(code):
    """Run `code` in a new interpreter -> (wall-clock seconds, CPU seconds, peak resident memory in MB)."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code], cwd=_rounds.ROOT)
    _, status, usage = os.wait4(child.pid, 0)  # getrusage of this child alone, not of the largest one so far
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{code!r} failed with exit code {child.returncode}: nothing was timed")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    if not hasattr(os, "wait4"):
        raise SystemExit("this benchmark asks the system what a child used (os.wait4), which Windows does not tell")
    names = ["ours", "peer", "limit"] if _rounds.has_peer("transformers") else ["ours", "limit"]
    contenders = {name: lambda name=name: fresh(CODE[name]) for name in names}
    results = _rounds.alternate(contenders, chosen.rounds, measure=lambda work: work())
    rows = []
    for column, what, unit in MEASURES:
        figures = {name: [values[column] for values in results[name]] for name in names}
        rows.append(_rounds.Row(f"{what}, against transformers' LlamaForCausalLM", "fresh process", unit,
                                figures["ours"], figures.get("peer"), figures["limit"], more_is_better=False))
    _rounds.show(rows)


if __name__ == "__main__":
    main()
