"""CUDA programs that were never written for the emulator: one .cu file with its own main(), built by g++ and run.

    program = build("vector_add.cu", folders=["include"], defines=["N=1000"])     no CUDA toolkit, no GPU
    result = run(program, schedule="reverse", seconds=60)                         its output goes to stdout

`translate` rewrites only what C++ has no words for: kernel<<<grid, block>>>(...), extern __shared__ arrays and inline
PTX. All else is declared by csrc/simt/compat/cuda_runtime.h, and what is not declared there does not compile.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from minillama.profile_build import FAST, PROFILED, PROFILER, RUNTIME, build_folder, source_folder

MEMORY = 4 << 30  # bytes of address space a program may take
OUTPUT = 16 << 20  # bytes it may print
FAMILIES = (  # what an undeclared name belongs to, so that the message says more than the name
    (r"tex[123]D\w*|texture\w*|cudaTexture\w*|surf\w*|cuda(Malloc3D)?Array\w*|cudaChannelFormat\w*|cudaMallocArray"
     r"|cudaSurface\w*|cudaCreateTexture\w*|cudaBindTexture\w*|cudaMemcpy(2D)?ToArray\w*", "textures and surfaces"),
    (r"cudaGraph\w*|cudaStream\w*Capture\w*", "CUDA graphs"), (r"cublas\w*|CUBLAS\w*", "cuBLAS"),
    (r"thrust\w*", "Thrust"), (r"cub", "CUB"), (r"cufft\w*", "cuFFT"), (r"curand\w*", "cuRAND"),
    (r"cusparse\w*", "cuSPARSE"), (r"cudnn\w*", "cuDNN"), (r"nccl\w*", "NCCL"), (r"nvrtc\w*", "run-time compilation"),
    (r"this_grid|(multi_)?grid_group|thread_group|block_tile_memory|experimental|this_multi_grid|this_cluster"
     r"|coalesced_\w+|\w+_partition|memcpy_async|cooperative_groups\w*", "this part of cooperative groups"),
    (r"(cuda|nvcuda|cu[A-Z])\w*|CU\w+|__[a-z]\w+|make_\w+|atomic\w+", "this CUDA function or type"),
)


class Unsupported(RuntimeError):
    """The program uses a part of CUDA that the emulator does not have; the text names it and its line."""


# ---- source to source

def masked(text):
    """`text` with each character of comments and of string and character literals as a blank; newlines stay."""
    token = (r'//(?:\\\n|[^\n])*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"'
             r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'")
    return re.sub(token, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.S)


def closing(code, start):
    """Where the bracket that opens at `start` closes. ValueError where it does not."""
    depth = 0
    for place in range(start, len(code)):
        depth += (code[place] in "([{") - (code[place] in ")]}")
        if depth == 0:
            return place
    raise ValueError(f"line {code.count(chr(10), 0, start) + 1}: {code[start]} is never closed")


def opening(code, place):
    """Where the bracket that closes at `place` opens; angle brackets count where they are outermost."""
    pairs, opened = {")": "(", "]": "[", "}": "{", ">": "<"}, []
    for at in range(place, -1, -1):
        if code[at] in ")]}" or (code[at] == ">" and opened in ([], ["<"] * len(opened)) and code[at - 1] != "-"):
            opened.append(pairs[code[at]])
        elif opened and code[at] == opened[-1]:
            opened.pop()
            if not opened:
                return at
    raise ValueError(f"line {code.count(chr(10), 0, place) + 1}: {code[place]} was never opened")


def kernel_start(code, place):
    """Where the kernel before `<<<` at `place` begins: it may be a::b<int, (N > 1)>, (*pointer), table[i], s->k."""
    while True:
        place = len(code[:place].rstrip())
        if code[place - 1: place] in (")", "]", ">"):
            last, place = code[place - 1], opening(code, place - 1)
            called = re.search(r"(\w+)\s*$", code[max(0, place - 200): place])
            if last == ")" and (not called or called[1] in ("else", "return", "do", "if", "for", "while")):
                return place
            continue
        name = re.search(r"\w*$", code[max(0, place - 200): place])[0]
        place -= len(name)
        joined = re.search(r"(::|\.|->)\s*$", code[max(0, place - 200): place])
        if not name or not joined:
            return place
        place -= len(joined[0])
        if joined[1] == "::" and not re.search(r"[\w>]\s*$", code[max(0, place - 200): place]):
            return place


def launches(code):
    """(place, removed characters, text) of the edits that make kernel<<<grid, block>>>(args) ordinary C++."""
    edits, at = [], code.find("<<<")
    while at >= 0:
        begin, place = kernel_start(code, at), at + 3
        while code[place: place + 3] != ">>>":
            if place >= len(code):
                raise ValueError(f"line {code.count(chr(10), 0, at) + 1}: <<< without its >>>")
            place = closing(code, place) + 1 if code[place] in "([{" else place + 1
        edits += [(begin, 0, "SIMT_KERNEL("), (at, 3, ")("), (place, 3, ")")]
        opened = code.find("(", place)
        arguments = code[opened: closing(code, opened)] if opened >= 0 else ""
        edits += [(opened + null.start(), 4, "nullptr") for null in re.finditer(r"\bNULL\b", arguments)]
        at = code.find("<<<", place)
    return edits


def dynamic_shared(code):
    """Edits that give `extern __shared__ T name[];` the launch's dynamic shared memory."""
    edits = []
    for found in re.finditer(r"\bextern\b[^;{}]*?\b__shared__\b[^;{}]*;", code):
        bare = re.sub(r"\b(__align__|alignas|__attribute__)\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|"
                      r"\bextern\b|\b__shared__\b|\\\n|\\$", " ", found[0])
        parts = re.fullmatch(r"\s*(.+?)\b(\w+)\s*\[\s*\]((?:\s*\[[^\[\]]*\])*)\s*;", bare, flags=re.S)
        if not parts:
            raise Unsupported(f"line {code.count(chr(10), 0, found.start()) + 1}: unsupported: {bare.strip()}")
        kind, name, rows = " ".join(parts[1].split()), parts[2], " ".join(parts[3].split())
        outer = re.sub(r"\b(namespace\b[^;{}()]*|extern\s*)\{", "  ", code[: found.start()])
        inside = outer.count("{") > outer.count("}") or found[0].count("\\\n")
        text = f"static const ::simt::program::DynamicShared<{kind}> {name};"
        if rows or inside:
            text = f"{kind} (*{name}){rows} = static_cast<{kind} (*){rows}>(::simt::dynamic_shared());"
        edits.append((found.start(), len(found[0]), text + "\n" * found[0].count("\n")))
    return edits


def inline_ptx(code, text):
    """Edits that turn inline PTX into a function that must not be called, so that unused wrappers do no harm."""
    edits = []
    for found in re.finditer(r"\b(asm|__asm__|__asm)\b\s*(volatile|__volatile__)?\s*\(", code):
        end = closing(code, found.end() - 1) + 1
        source, name = text[found.start(): end], f"simt_ptx_{found.start()}"
        what = re.search(r'"[\s{]*([\w.]+)', source)
        breaks = source.count("\\\n") * "\\\n" or source.count("\n") * "\n"
        edits.append((found.start(), len(source), f'do {{ void {name}() __attribute__((error("unsupported: inline PTX '
                      f'{what[1] if what else ""}"))); {name}(); }} while (0){breaks}'))
    return edits


def translate(text, name):
    """C++ text of CUDA text, line by line the same; `name` is the file that messages will name."""
    code, out, at = masked(text), [f"#line 1 {json.dumps(str(name), ensure_ascii=False)}\n"], 0
    for place, length, new in sorted(launches(code) + dynamic_shared(code) + inline_ptx(code, text)):
        if place < at:  # inside what another edit has already replaced
            continue
        out += [text[at:place], new]
        at = place + length
    return "".join(out) + text[at:]


def translate_tree(source, folders, target):
    """Translate `source` and all files it includes from its own folder or from `folders`; the path of the result."""
    seen = {}

    def visit(path):
        def include(found):
            near = [path.parent] if found[2] == '"' else []
            there = next((p for f in [*near, *folders] if (p := Path(os.path.normpath(f / found[3]))).is_file()), None)
            return f'{found[1]}"{visit(there)}"' if there else found[0]

        if path not in seen:
            seen[path] = target / f"{len(seen)}_{path.name}"
            text = translate(path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n"), path)
            text = re.sub(r'^(\s*#\s*include\s*)(["<])([^">\n]+)[">]', include, text, flags=re.M)
            seen[path].write_text(text, encoding="utf-8")
        return seen[path]

    return visit(Path(source))


def build(source, folders=(), defines=(), profiled=False, others=()):
    """The path of the program of `source` and `others`. Unsupported names what the emulator lacks, with its line;
    ValueError is the first line of another error of the compiler; both in terms of the file that the user wrote."""
    if sys.platform != "linux" or not shutil.which("g++"):
        raise RuntimeError("programs are compiled with g++, on Linux: sudo apt install g++")
    here = source_folder() / "simt"
    names = [here / name for name in [*RUNTIME, *(PROFILER * profiled), "compat/program.cpp"]]
    flags = [*FAST, *(PROFILED if profiled else ["-g1"]), f"-I{here / 'compat'}", *(f"-I{f}" for f in folders),
             *(f"-D{d}" for d in defines), "-include", "cuda_runtime.h", "-fmax-errors=1",
             "-gdwarf-4"]  # some addr2line reads the file names of DWARF 5 one off
    runtime_flags = [*FAST, *(["-DSIMT_PROFILE"] if profiled else [])]
    state = hashlib.sha256(repr((runtime_flags, flags)).encode())
    for path in sorted([*here.rglob("*.h"), *here.rglob("*.cpp")]):
        state.update(path.read_bytes())
    folder = build_folder() / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    runtime = folder / f"runtime-{state.hexdigest()[:16]}.o"
    if not runtime.exists():
        _gcc([*runtime_flags, "-c", "-x", "c++", "-"], "".join(f'#include "{name}"\n' for name in names), runtime)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        translated, temporary = {}, Path(temporary)
        for number, one in enumerate([source, *others]):
            (temporary / str(number)).mkdir()
            main = translate_tree(one, [Path(f) for f in folders], temporary / str(number))
            translated[main] = main.with_suffix(".o")
        for path in sorted(temporary.rglob("*.*")):
            state.update(path.read_bytes().replace(str(temporary).encode(), b""))
        program = folder / f"{Path(source).stem}-{state.hexdigest()[:16]}"
        if not program.exists():
            for main, compiled in translated.items():
                _gcc([*flags, "-c", "-x", "c++", str(main)], "", compiled)
            _gcc([str(runtime), *map(str, translated.values()), "-ldl", "-lrt", "-pthread"], "", program)
    return program


def _gcc(arguments, text, target):
    """Run g++ into a neighbour of `target` and rename it: who looks sees a whole file or none."""
    partial = f"{target}.{os.getpid()}"
    done = subprocess.run(["g++", *arguments, "-o", partial], input=text, capture_output=True, text=True,
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise _explained(done.stderr)
    os.replace(partial, target)


def _explained(stderr):
    """The first error of the compiler or linker as an exception."""
    lines = stderr.splitlines()
    first = next((line for line in lines if re.search(r"error:|undefined reference", line)), stderr[:300])
    first = re.sub(r"^\S*/ld: |\S*\.o: in function `.*?': ?", "", first).replace("fatal error:", "error:")
    if marked := re.search(r'^(.+?:\d+):.*attribute error: (.*)$', first):
        return Unsupported(f"{marked[1]}: {marked[2].strip(chr(34))}")
    named = re.search(r"error: ([\w./-]+): No such file", first) or re.search(
        r"error: .*?[‘'`]([\w:]+).*?(was not declared|does not name a|has not been declared|has no member"
        r"|is not a member|is not a template|undeclared|is not a namespace)", first)
    top = re.sub(r"[/.].*|.*::", "", named[1]) if named else ""
    for family, label in FAMILIES:
        if top and re.fullmatch(family, top):
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


def run(program, arguments=(), schedule="forward", seconds=60, write=None):
    """Run it as a child with limits on time, memory and output (no sandbox); `write` gets its output as bytes."""
    write = write or (lambda data: (sys.stdout.buffer.write(data), sys.stdout.buffer.flush()))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        environment = {"SIMT_SECONDS": str(min(10, seconds / 4)), **os.environ, "SIMT_SCHEDULE": schedule,
                       "SIMT_REPORT": str(report)}
        child = subprocess.Popen(
            ["sh", "-c", f'ulimit -v {MEMORY // 1024}; ulimit -c 0; exec "$0" "$@"', str(program), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment)
        result = Result(0, _pump(child, seconds, write))
        result.code = child.wait()
        _read_report(report, result)
    if result.code < 0 and not result.stopped:
        result.stopped = f"ended by {signal.Signals(-result.code).name}"
    return result


def _pump(child, seconds, write):
    """Hand on the child's output until it ends; the reason, if it was stopped."""
    reasons, total = [], 0

    def stop(reason):
        reasons.append(reason)
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop, [f"stopped after {seconds:g} seconds: give it more with --limit-seconds"])
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
