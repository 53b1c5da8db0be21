"""Runs of the command line in forked children, with limits of time and memory: PyTorch is imported once.

    with ForkedRuns() as runs:
        ended = runs.run(words, seconds=5, gib=2)       # ended.code: None if it was still at work after so long

Run as a program, this file takes one JSON object a line and answers with one.
"""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (of a signal: minus its number; None: stopped after its time), stderr, seconds."""

    code: int | None
    said: str
    seconds: float


class ForkedRuns:
    """The process that forks; a context."""

    def __enter__(self):
        paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self, words, seconds=5.0, gib=2, folder=".", typed=""):
        """One command, in a folder and with a line on stdin, with at most so many GiB of address space beyond what the
        parent has -> `Ended`."""
        print(json.dumps({"words": [str(word) for word in words], "seconds": seconds, "gib": gib,
                          "folder": str(folder), "typed": typed}), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))


def serve():
    """Answer requests until stdin ends."""
    import torch
    import torch._dynamo  # PyTorch loads it, for seconds, with the first optimizer: here, once for all commands

    from minillama.cli.command_line import build_parser

    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    build_parser()  # imports what the flags of all commands come from
    for line in sys.stdin:
        request, began = json.loads(line), time.perf_counter()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            child = os.fork()
            if not child:
                command(request, said.fileno())
            code = wait(child, request["seconds"])
            said.seek(0)
            print(json.dumps({"code": code, "said": said.read(), "seconds": time.perf_counter() - began}), flush=True)


def wait(child, seconds):
    """The child's exit code, or None for one that had to be killed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def command(request, output):
    """The child: limit its memory, run, leave without any clean-up of the parent's."""
    code = 70
    try:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = held + request["gib"] * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(request["folder"])
        sys.stdin = io.TextIOWrapper(io.BytesIO(request["typed"].encode()), encoding="utf-8")
        from minillama.cli import command_line as cli

        cli.require_room_for_torch = lambda: None  # under a limit it would load PyTorch anew
        code = cli.main(request["words"])
    except SystemExit as stopped:  # argparse's refusals
        code = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
