"""The grader: runs checks on a learner's files in a child process with limits, and says how the child ended.

A child that hangs, dies or floods is ended and named; what it printed is kept, its beginning at least.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT, START_LIMIT = 30, 180  # seconds of silence: of one check; of a child that still imports PyTorch, or compiles
KEPT = 2000  # bytes of what a learner prints


def run_checks(checks, files, limit=LIMIT):
    """(events of the child, what the learner printed, how the child ended or None where it ended well)."""
    # the child talks on its first stdout; what the learner's code prints arrives on stderr
    command = [sys.executable, "-c", "from minillama.course.exercise import child; child()", str(checks),
               *map(str, files)]
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places)),
                   "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment, start_new_session=os.name == "posix")
    lines, printed = queue.Queue(), bytearray()
    for target in (lambda: _pass_on(process.stdout, lines), lambda: _keep_beginning(process.stderr, printed)):
        threading.Thread(target=target, daemon=True).start()
    events, end = [], "no end"
    try:
        while end == "no end":
            line = lines.get(timeout=limit if events else START_LIMIT)
            if line is None:
                end = _how_it_died(process)
            else:
                events.append(json.loads(line))
                end = None if "end" in events[-1] else end
    except queue.Empty:
        end = f"no answer within {limit} seconds, an endless loop?"
    finally:
        _kill(process)
    return events, printed.decode("utf-8", "replace"), end


def _pass_on(pipe, lines):
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _keep_beginning(pipe, kept):
    while block := pipe.read1(65536):
        kept.extend(block[:max(0, KEPT - len(kept))])


def _how_it_died(process):
    code = process.wait()
    if code < 0:
        return f"your code killed Python: {signal.Signals(-code).name}"
    return f"your code ended Python, exit code {code}: os._exit?"


def _kill(process):
    """The child and what it may have started; a session of its own makes that one call on POSIX."""
    try:
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    except ProcessLookupError:
        pass
    process.wait()


class Result(typing.NamedTuple):
    """Of one check. Verdicts are ok, todo and fail; a file that does not load has one result, of the check "load"."""

    check: str
    verdict: str
    message: str
    hint: int  # where the hints for this kind of mistake begin
    seconds: float


class Graded(typing.NamedTuple):
    """Of one file: all names of checks, their hints, and the results of those that were run."""

    checks: list
    hints: dict
    results: list

    @property
    def verdict(self):
        verdicts = {result.verdict for result in self.results}
        if "fail" in verdicts:
            return "fail"
        return "ok" if verdicts == {"ok"} and len(self.results) == len(self.checks) else "todo"


def grade(checks, files, limit=None):
    """One `Graded` for each file, and what their code printed."""
    limit = limit or (START_LIMIT if any(Path(file).with_suffix(".cu").is_file() for file in files) else LIMIT)
    events, printed, end = run_checks(checks, files, limit)
    if not events:
        raise RuntimeError(f"{checks}: the checks do not start ({end}): {printed.strip()[-300:]}")
    graded = [Graded(events[0]["checks"], events[0]["hints"], []) for _ in files]
    for event in events:
        if "check" in event and (event["check"] or event["verdict"] != "ok"):
            graded[event["file"]].results.append(Result(event["check"] or "load", event["verdict"], event["message"],
                                                        event["hint"], event["seconds"]))
    if end:
        number = max((event["file"] for event in events if "file" in event), default=0)
        graded[number].results.append(Result(events[-1].get("start", "load"), "fail", end, 0, 0.0))
    return graded, printed
