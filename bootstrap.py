"""The set-up behind run.py: a .venv with PyTorch, the libraries and the compiled kernels, made once, then trusted.

Trust is a stamp inside .venv, written after each step that worked. A .venv without a stamp was interrupted and is
made anew; one whose stamp differs from what the checkout wants is brought up to date. Standard library only.
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
HOST = getattr(sys, "_base_executable", None) or sys.executable  # not .venv's own: that one is deleted at need
STAMP = VENV / "minillama-stamp.json"
LOG = ROOT / "build" / "setup.log"

TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # the ordinary wheel for Linux is the CUDA build: 5 times as big
DISK_GB = {"cpu": 1.5, "cuda": 7.0, "default": 1.5}  # .venv, 0.9 with the CPU build, plus what pip keeps in its cache
NO_PIP = "this Python has neither venv nor pip: " + (
    "brew install python" if sys.platform == "darwin" else "sudo apt install python3-venv") + ", then start again"


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


def set_up(for_tests=False, for_web=False):
    """Bring .venv to what this checkout wants. While the stamp fits, only `.venv/bin/python -V` is run."""
    done = read_stamp()
    torch = os.environ.get("MINILLAMA_TORCH") or done.get("torch") or default_torch()
    if done.get("torch") != torch or not installed("torch"):
        done = make_venv(torch)
    if done.get("libraries") != libraries() or not installed("numpy", "regex", "tqdm", "matplotlib"):
        step("libraries", pip(libraries()))
        done = write_stamp(done, libraries=libraries())
    done = build_kernels(done)
    if for_tests:
        install_oracles(done)
    if for_web and not installed("starlette", "uvicorn"):
        say("the page wants a web server's two libraries: 1 MB, once")
        step("web", pip(requirements("web")))


def make_venv(torch):
    """A new .venv with PyTorch and the libraries in it: by uv if that is there, else by venv and pip."""
    need, free, start = DISK_GB.get(torch, 1.5), shutil.disk_usage(ROOT).free / 1e9, time.monotonic()
    name = f"{TORCH} ({torch} build)" if torch in DISK_GB else torch
    say(f"first start: {name} and a few libraries go into .venv, once; from then on all is offline")
    say(f"that takes up to {need} GB of disk ({free:.0f} GB are free) and about two minutes on a fast line")
    if free < need:
        raise SetupError(f"too little disk at {ROOT}: {need} GB needed, {free:.1f} GB free; make room, start again")
    sources = torch_sources(torch)
    ways = [(uv_venv, sources[:1])] if shutil.which("uv") else []  # pip may know of sources that uv does not
    for make, from_where in [*ways, (plain_venv, sources)]:
        try:
            shutil.rmtree(VENV, ignore_errors=True)
            make()
            install_torch(from_where)
            break
        except SetupError as error:
            if make is plain_venv:
                raise
            say(f"uv could not do it ({str(error).splitlines()[0]}): trying venv and pip")
    size = sum(file.lstat().st_size for file in VENV.rglob("*")) / 1e9
    say(f".venv is ready: {size:.1f} GB, {time.monotonic() - start:.0f} s")
    return write_stamp({}, torch=torch, libraries=libraries())


def uv_venv():
    step("environment (uv)", ["uv", "venv", "--python", HOST, VENV])


def plain_venv():
    """venv; where the distribution split ensurepip off, virtualenv in a throw-away folder does the same."""
    if not fails("environment", [HOST, "-m", "venv", VENV]):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    if fails("pip", [HOST, "-m", "pip", "--version"]):
        raise SetupError(NO_PIP)
    with tempfile.TemporaryDirectory() as folder:  # --target is allowed on an externally managed Python
        step("virtualenv", [HOST, "-m", "pip", "install", "--target", folder, "virtualenv"])
        step("environment", [HOST, "-m", "virtualenv", VENV], env={**os.environ, "PYTHONPATH": folder})


def install_torch(sources):
    """PyTorch and the libraries, from the first source that has them."""
    *first, last = sources
    for source in first:
        if not fails(f"{source[0]} and libraries", pip([*source, *libraries()])):
            return
        say(f"{source[0]} is not to be had here: trying {last[0]}, which may be the CUDA build (5 GB more)")
    step(f"{last[0]} and libraries", pip([*last, *libraries()]))


def default_torch():
    """"cuda" with an NVIDIA driver, "cpu" on any other Linux, and the one "default" wheel elsewhere."""
    driver = shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia/version")
    return "cuda" if driver else "cpu" if sys.platform == "linux" else "default"


def torch_sources(torch):
    """Arguments for pip, best first. The CPU build is asked for by name: no index can pass off another."""
    if torch != "cpu":
        return [[TORCH if torch in DISK_GB else torch]]
    index = ["--extra-index-url", CPU_INDEX] if answers(CPU_INDEX + "/torch/") else []
    return [[TORCH + "+cpu", *index], [TORCH]]


def answers(url, seconds=5):
    """Whether the address answers in time; in a thread, for the look-up of a name has no time limit of its own."""
    found = []

    def ask():
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=seconds) as reply:
            found.append(reply.status)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found == [200]


def build_kernels(done):
    """Compile csrc/ when it or PyTorch has changed. Without a compiler, or if that fails, plain PyTorch does it all.

    The stamp says what the libraries that lie there were made of ("kernels"), and what could not be made with which
    compiler ("no_kernels"), so that it is tried again with another one. Libraries that fit stay, whatever compiler
    there is now.
    """
    sources = [ROOT / "setup.py", *sorted(file for file in (ROOT / "csrc").rglob("*") if file.is_file())]
    wanted = [done["torch"].encode(), *map(Path.read_bytes, sources)]
    state = hashlib.sha256(b"".join(wanted)).hexdigest()
    there = list((ROOT / "minillama").glob("_*.so"))
    if there and done.get("kernels") == state:
        return done
    compiler, hint = find_compiler()
    if not there and done.get("no_kernels") == f"{compiler} {state}":
        return done
    for stale in there:
        stale.unlink()
    if there:
        say("removed the compiled kernels: they were made of other sources, or for another PyTorch")
    if not compiler:
        say(f"kernels: reference (no C++ compiler; {hint})")
    elif fails("kernels", [PYTHON, "setup.py", "build_ext", "--inplace"], cwd=ROOT):
        say(f"kernels: reference (the build failed, see {LOG}); all else works")
    else:
        return write_stamp(done, kernels=state)
    return write_stamp(done, kernels=None, no_kernels=f"{compiler} {state}")


def find_compiler():
    """(the C++ compiler or None, what to do if there is none)"""
    if WINDOWS:
        return None, "on Windows minillama runs on plain PyTorch; under WSL it has its kernels"
    if sys.platform == "darwin" and subprocess.run(["xcode-select", "-p"], capture_output=True).returncode:
        return None, "xcode-select --install"
    headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))  # python3-dev, on Debian
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    return compiler if headers else None, "sudo apt install g++ python3-dev"


def install_oracles(done):
    """pytest, and what the tests compare with. What cannot be had is named; the tests that need it skip."""
    lines = (ROOT / "tests" / "oracles.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    missing = [line for line in wanted if line not in done.get("oracles", [])]
    if missing:
        say("the tests want pytest and oracles to compare with: 0.5 GB more, about a minute")
        step("pytest", pip(requirements("test")))
    for flags in ([], ["--no-deps"]):
        group = {line: line.split("#")[0].strip() for line in missing if ("--no-deps" in line) == bool(flags)}
        if group and fails("oracles", pip([*flags, *group.values()])):
            group = {line: name for line, name in group.items() if not fails(name, pip([*flags, name]))}
        missing = [line for line in missing if line not in group]
    if missing:
        say("not to be had here: " + ", ".join(missing) + "; the tests that need them skip")
    write_stamp(done, oracles=[line for line in wanted if line not in missing])


# ---- small tools

def requirements(name):
    """A list of requirements in pyproject.toml (Python 3.10 reads no TOML, but these lists are Python too)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return ast.literal_eval(re.search(rf"^{name} = (\[.*?\])", text, re.MULTILINE | re.DOTALL).group(1))


def libraries():
    return requirements("dependencies") + requirements("build")


def installed(*names):
    """Whether .venv's Python runs and has these libraries. It is asked, for a system upgrade can empty a .venv."""
    try:
        answer = subprocess.run([PYTHON, "-V"], capture_output=True, text=True).stdout
    except OSError:
        return False
    version = ".".join(answer.removeprefix("Python ").split(".")[:2])
    site = VENV / ("Lib" if WINDOWS else f"lib/python{version}") / "site-packages"
    return all((site / name / "__init__.py").exists() for name in names)


def pip(arguments):
    """The command that installs into .venv. Nothing is byte-compiled ahead: that would double the time."""
    if installed("pip"):
        return [PYTHON, "-m", "pip", "install", "--no-input", "--no-compile", *arguments]
    return ["uv", "pip", "install", "--python", PYTHON, *arguments]


def step(title, command, **options):
    """Run a command that must work; its last words explain a failure."""
    if fails(title, command, **options):
        last = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        raise SetupError(f"{title}: failed\n    " + "\n    ".join(last) + f"\n  the whole story is in {LOG}")


def fails(title, command, **options):
    """Run a command with its output in the log, and a running clock on a terminal. True if it failed."""
    start, clock = time.monotonic(), bool(sys.stdout) and sys.stdout.isatty()
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG, "ab") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        while True:
            try:
                code = child.wait(timeout=1 if clock else None)
                break
            except subprocess.TimeoutExpired:
                print(f"\r  {title} ... {time.monotonic() - start:.0f} s", end="", flush=True)
    end = f"{title}: {'failed' if code else 'done'}, {time.monotonic() - start:.0f} s"
    print(f"\r  {end}   " if clock else f"  {end}", flush=True)
    return code != 0


def say(text):
    """One line of the set-up's story."""
    print(f"minillama: {text}", flush=True)


def read_stamp():
    """What has been done in .venv; empty if nothing can be relied on."""
    try:
        done = json.loads(STAMP.read_text(encoding="utf-8"))
        return done if isinstance(done, dict) else {}
    except (OSError, ValueError):
        return {}


def write_stamp(done, **news):
    """Add `news` to the stamp, which is replaced whole or not at all."""
    done = {**done, **news}
    fresh = STAMP.with_suffix(".partial")
    fresh.write_text(json.dumps(done, indent=1), encoding="utf-8")
    os.replace(fresh, STAMP)
    return done


@contextlib.contextmanager
def one_at_a_time():
    """Two starts at once (two terminals) must not both make .venv: the second waits. Windows goes without."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG.parent / "setup.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another run.py is setting up: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clean():
    """Remove .venv, build/ and the compiled kernels; results in out/ stay."""
    for folder in (VENV, ROOT / "build"):
        shutil.rmtree(folder, ignore_errors=True)
    for library in (ROOT / "minillama").glob("_*.so"):
        library.unlink()
    say("removed .venv, build and the compiled kernels")
    return 0
