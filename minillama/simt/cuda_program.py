"""CUDA programs that were never written for the emulator: one .cu file with its own main(), built by g++ and run.

    program = build("vector_add.cu", folders=["include"], defines=["N=1000"])     no CUDA toolkit, no GPU
    result = run(program, schedule="reverse", seconds=60)                         its output goes to stdout

What C++ has no words for is rewritten (cuda_translate). All else is declared by csrc/simt/compat/cuda_runtime.h, and
what is not declared there does not compile.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from minillama.simt.compiler import contraction, gcc, is_own, require_compiler
from minillama.simt.cuda_translate import Unsupported, translate_tree
from minillama.simt.emulator_build import FAST, GUARD, PROFILED, PROGRAM, build_folder, compile_runtime, source_folder

MEMORY = 8  # GiB of address space a program may take; half of it is the device's
OUTPUT = 16 << 20  # bytes it may print
# what an undeclared name belongs to, so that the message says more than the name: {its words: patterns of names}
FAMILIES = json.loads(Path(__file__).with_name("cuda_families.json").read_text(encoding="utf-8"))


def build(source, folders=(), defines=(), profiled=False, others=(), contracted=True):
    """The path of the program of `source` and `others`; contracted: --fmad. Unsupported names what is lacking and its
    line; ValueError is the first line of another error of the compiler; both in terms of the user's own file."""
    require_compiler()
    here, folder = source_folder() / "simt", build_folder() / "programs"
    flags = [*FAST, *(PROFILED if profiled else ["-g1"]), *contraction(contracted), f"-I{here / 'compat'}",
             *(f"-I{f}" for f in folders), *(f"-D{d}" for d in defines), "-include", "cuda_runtime.h", "-fmax-errors=1",
             "-fno-builtin-printf", "-fno-delete-null-pointer-checks",  # old programs ask a method `if (this)`
             "-gdwarf-4"]  # some addr2line reads the file names of DWARF 5 one off
    runtime, state = compile_runtime(folder, profiled, PROGRAM)
    state.update(repr(flags).encode())
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        translated, temporary = {}, Path(temporary)
        for number, one in enumerate([source, *others]):
            (temporary / str(number)).mkdir()
            main = translate_tree(one, [Path(f) for f in folders], temporary / str(number))
            translated[main] = main.with_suffix(".o")
        for path in sorted(temporary.rglob("*.*")):
            state.update(path.read_bytes().replace(str(temporary).encode(), b""))
        if any(re.search(rb'#\s*include\s*[<"]omp\.h[>"]', path.read_bytes()) for path in temporary.rglob("*.*")):
            flags.append("-fopenmp")
        program = folder / f"{Path(source).stem}-{state.hexdigest()[:16]}"
        if not is_own(program):
            for main, compiled in translated.items():
                plain = ["-x", "c", "-O2", "-w", FAST[-1], *flags[len(FAST):]]  # C stays C, and knows no CUDA
                plain = [f for f in plain if f not in ("-include", "cuda_runtime.h", "-fsanitize=thread")]
                _gcc([*(plain if main.suffix == ".c" else [*flags, "-x", "c++"]), "-c", str(main)], "", compiled)
            guard = [str(here / GUARD)] * profiled
            kernels = [*guard, *map(str, translated.values()), *guard]
            _gcc([str(runtime), *kernels, *flags[-1:], "-ldl", "-lrt", "-pthread"], "", program)
    return program


def _gcc(arguments, text, target):
    if said := gcc(arguments, text, Path(target)):
        raise _first_error(said)


def _first_error(stderr):
    """The first error of the compiler or linker as an exception."""
    lines = stderr.splitlines()
    first = next((line for line in lines if re.search(r"error:|undefined reference", line)), stderr[:300])
    first = re.sub(r"^\S*/ld: |\S*\.o: in function `.*?': ?", "", first).replace("fatal error:", "error:")
    if marked := re.search(r'^(.+?:\d+):.*attribute error: (.*)$', first):
        return Unsupported(f"{marked[1]}: {marked[2].strip(chr(34))}")
    named = re.search(r"(?:error: |reference to [‘'`])([\w./-]+)(?:: No such file|['(])", first) or re.search(
        r"error: .*?[‘'`]([\w:]+).*?(was not declared|does not name a|has not been declared|has no member"
        r"|is not a member|is not a template|undeclared|is not a namespace|that depend on a template)", first)
    top = re.sub(r"[/.].*|.*::", "", named[1]) if named else ""
    meant = not re.match("cu[A-Z]", top) and re.search(r"did you mean [‘'`](\w+)", first)
    slip = meant and meant[1] != top and SequenceMatcher(None, top, meant[1]).ratio() > 0.9  # of the pen, unless CUDA
    for label, names in FAMILIES.items():                                                   # has this very name
        if top in names or (top and not slip and re.fullmatch("|".join(names), top)):
            place = re.match(r"(.+?:\d+):", first)
            return Unsupported(f"{place[1] if place else '?'}: unsupported: {label} ({named[1]})")
    return ValueError(first)


@dataclass
class Result:
    """How a program ended: its own exit code (negative: the signal), why it was stopped if it was, what the emulator
    refused or found wrong, and the profiler's counts as JSON text."""

    code: int
    stopped: str = ""
    unsupported: str = ""
    findings: list = field(default_factory=list)
    profile: str = ""


def run(program, arguments=(), schedule="forward", seconds=60, write=None, memory=MEMORY):
    """Run it as a child with limits on time, memory and output (no sandbox); `write` gets its output as bytes."""
    write = write or (lambda data: (sys.stdout.buffer.write(data), sys.stdout.flush()))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        environment = {"SIMT_SECONDS": str(min(10, seconds / 4)), **os.environ, "SIMT_SCHEDULE": schedule,
                       "SIMT_REPORT": str(report), "SIMT_LIMIT": f"{seconds:g}"}
        child = subprocess.Popen(
            ["sh", "-c", f'ulimit -v {int(memory * 2**20)}; ulimit -c 0; exec "$0" "$@"', str(program), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment)
        result = Result(0, _pump(child, seconds, write))
        result.code = child.wait()
        _read_report(report, result)
    if result.code < 0 and not result.stopped:
        name = signal.Signals(-result.code).name
        result.stopped = f"ended by {name} (it may have {memory:g} GiB of memory: give it more with --limit-gib)"
    return result


def _pump(child, seconds, write):
    """Hand on the child's output until it ends; the reason, if it was stopped."""
    reasons, total = [], 0

    def stop(reason):
        reasons.append(reason)
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(seconds + 1, stop, [f"stopped after {seconds:g} seconds: more with --limit-seconds"])
    timer.start()
    try:
        while data := os.read(child.stdout.fileno(), 65536):
            total += len(data)
            if total > OUTPUT:
                stop(f"stopped: it printed more than {OUTPUT >> 20} MiB")
                break
            write(data)
        child.wait()
    finally:
        timer.cancel()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return reasons[0] if reasons else ""


def _read_report(path, result):
    for entry in path.read_text(encoding="utf-8", errors="replace").split("\0") if path.exists() else ():
        kind, _, text = entry.partition(":")
        if kind == "error":
            result.findings.append(text)
        elif kind:  # "unsupported" or "profile"
            setattr(result, kind, text)
