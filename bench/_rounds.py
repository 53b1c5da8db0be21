"""Rounds: contenders take turns, so that a slow minute of the machine falls on all; a row says what came out.

Import this first: it tells OpenMP, before torch loads, to let waiting threads sleep, and finds a checkout's minillama.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

COLUMNS = ("what", "size", "ours", "peer", "ratio", "limit", "share of limit", "rounds", "date", "machine")


def options(description, argv=None, add=None):
    """The command line that every benchmark understands, read and obeyed (the number of threads). `add(parser)` adds
    what one of them wants besides."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (default 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    parser.add_argument("--small", action="store_true", help="a tiny size, to see that it runs: no figure to quote")
    if add:
        add(parser)
    chosen = parser.parse_args(argv)
    if chosen.rounds < 1 or chosen.threads < 1:
        parser.error(f"--rounds {chosen.rounds} --threads {chosen.threads}: both must be at least 1")
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # for processes started from here, and a torch yet to load
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(chosen.threads)
    return chosen


def alternate(contenders, rounds, measure=None):
    """{name: work} -> {name: a measurement for each round}. Every second round goes backwards (A B, B A, ...), so a
    machine that slows down steadily favours none. One turn of each, not measured, comes before."""
    names, results = list(contenders), {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            results[name].append((measure or seconds)(contenders[name]))
    return results


def seconds(work):
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values):
    """Half the distance between the quartiles, as a part of the median: how far a typical round is off."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / statistics.median(values)


@dataclass(frozen=True)
class Row:
    """One line of the table. ours, peer, limit: a number for each round, in `unit`, or None where there is none.

    Ratios are formed round by round, between neighbours in time, and above 1 means that ours is better.
    """

    what: str
    size: str
    unit: str
    ours: list
    peer: list | None = None
    limit: list | None = None
    more_is_better: bool = True

    def ratios(self, other):
        """How many times better ours is than `other` (the peer's or the limit's numbers), in each round."""
        pairs = zip(self.ours, other, strict=True)
        return [mine / theirs if self.more_is_better else theirs / mine for mine, theirs in pairs]

    def cells(self):
        ratio, share = (self.ratios(other) if other else None for other in (self.peer, self.limit))
        return [self.what, self.size, self._number(self.ours), self._number(self.peer),
                "-" if ratio is None else f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})",
                self._number(self.limit), "-" if share is None else f"{100 * statistics.median(share):.0f} %",
                str(len(self.ours)), datetime.date.today().isoformat(), machine()]

    def _number(self, values):
        if not values:
            return "-"
        return f"{statistics.median(values):.4g} {self.unit} ±{100 * spread(values):.0f} %"


def show(rows):
    """Print the rows as a Markdown table."""
    for cells in [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows)]:
        print("| " + " | ".join(cells) + " |")


def has_peer(package):
    """Whether a peer is installed; if not, one line says how to get it, and the benchmark goes on without."""
    if importlib.util.find_spec(package) is not None:
        return True
    pins = (ROOT / "tests" / "oracles.txt").read_text(encoding="utf-8").splitlines()
    pin = next((line for line in pins if line.startswith(package + "==")), package)
    print(f"without a peer: {package} is not installed (python3 run.py test installs it, or: pip install {pin})")
    return False


def machine():
    """Kind of CPU, its cores and how many threads are used, and the version of torch."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    return (f"{processor()}, {os.cpu_count()} cores, threads: {threads}, {platform.system()}, "
            f"torch {importlib.metadata.version('torch')}")


def processor():
    """The CPU's own name for itself, where the system tells it."""
    try:
        if sys.platform == "darwin":
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return platform.processor() or platform.machine()
