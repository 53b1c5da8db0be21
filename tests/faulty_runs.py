"""Runs of the command line that die, stop or find the disk full at the n-th call that changes a folder.

    with FaultyRuns(folder) as runs:
        whole = runs.run(words, place)                     # counts the calls below `place`
        runs.run(words, place, at=whole.calls, fault="killed")

Run as a program, this file is one process with `faulty_calls.c` preloaded: it imports PyTorch once and forks a child
for each run, which takes tenths of a second. It takes one JSON object a line and answers with one.
"""

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import platform
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FAULTS = ("none", "killed", "full", "stopped")  # in the order of `enum fault`
LONGEST = 120  # seconds of a run; one that waits for ever is killed by SIGALRM


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (of a signal: minus its number; None: stopped, `process` waits for `go_on`), the
    calls that it made below the folder (0 where it was killed), what it said on stderr."""

    code: int | None
    calls: int
    said: str
    process: int


def why_not_here():
    """Why faults cannot be planted on this machine, or ""."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "faults are planted by LD_PRELOAD in front of glibc, on Linux"
    return "" if compiler() else "faults need a C compiler, cc or gcc, to be planted"


def compiler():
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def preloaded(folder):
    """The environment of a process with the library, which is compiled into `folder`, in front."""
    library = Path(folder) / "faulty_calls.so"
    if not library.exists():
        subprocess.run([compiler(), "-O1", "-shared", "-fPIC", "-o", library, HERE / "faulty_calls.c", "-ldl"],
                       check=True)
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


class FaultyRuns:
    """The process that forks; a context."""

    def __init__(self, folder, first=""):
        """`folder` is for the library and what runs say; `first` is Python that the process does before all."""
        self.folder = Path(folder)
        self.process = subprocess.Popen([sys.executable, __file__, first], env=preloaded(folder),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self, words, place, at=0, fault="none"):
        """One command -> `Ended`; the fault comes at call number `at`, from 1, of those that change `place`."""
        return self._ask(words=[str(word) for word in words], place=str(Path(place).resolve()), at=at,
                         fault=FAULTS.index(fault), said=str(self.folder / "said.txt"))

    def go_on(self, stopped):
        """Let a run that was stopped go on to its end -> `Ended`."""
        return self._ask(process=stopped.process)

    def _ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))


def serve():
    """Answer requests until stdin ends."""
    import torch

    import minillama

    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    names = {module.name for module in pkgutil.walk_packages(minillama.__path__, "minillama.")}
    for name in sorted(names - {"minillama.__main__"}):  # once, before the forks
        with contextlib.suppress(ImportError):  # of what only the book needs
            importlib.import_module(name)
    exec(sys.argv[1], {})
    runs = {}  # process -> (where it counts, what it says)
    for line in sys.stdin:
        request = json.loads(line)
        if "process" in request:
            process = request["process"]
            os.kill(process, signal.SIGCONT)
        else:
            reader, writer = os.pipe()
            said = f"{request['said']}.{len(runs)}"
            process = os.fork()
            if not process:
                os.close(reader)
                command(request, said, writer)
            os.close(writer)
            runs[process] = reader, said
        print(json.dumps(outcome(process, *runs[process])), flush=True)
    os._exit(0)  # a tidy end of PyTorch takes seconds


def command(request, said, writer):
    """The child: arm, run, tell the count, leave without any clean-up of the parent's."""
    code = 70
    try:
        signal.alarm(LONGEST)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdin = open(os.devnull)
        from minillama.cli.command_line import main

        faults = ctypes.CDLL(None)
        faults.arm_faults(request["place"].encode(), ctypes.c_long(request["at"]), request["fault"])
        code = main(request["words"])
        os.write(writer, str(faults.calls_seen()).encode())
    except SystemExit as stopped:  # argparse's refusals
        code = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def outcome(process, reader, said):
    """The fields of `Ended` once the child has ended or stopped."""
    _, status = os.waitpid(process, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"code": None, "calls": 0, "said": "", "process": process}
    with open(reader) as pipe, open(said, encoding="utf-8") as text:
        calls, words = int(pipe.read() or 0), text.read()
    os.unlink(said)
    return {"code": os.waitstatus_to_exitcode(status), "calls": calls, "said": words, "process": process}


if __name__ == "__main__":
    serve()
