"""What a check of an exercise says, and the child process in which it looks at a learner's code.

A checks file imports `Wrong` and `close`; in AFTER, {check: check}, one waits for the other. `course/check.py` starts
the child; whatever the learner's code does there ends in a sentence, never in a dead grader.
"""

import importlib.util
import json
import numbers
import os
import sys
import time
import traceback
from pathlib import Path

SPARE = 2 << 30  # bytes that a learner's code may take beyond what Python and PyTorch took before it
TORCH = 16 << 30  # address space, mostly unused, that PyTorch maps when it is imported


class Wrong(AssertionError):
    """A learner's answer is wrong: what is wrong in a sentence, and the index of the first hint for this mistake."""

    def __init__(self, message, hint=0):
        super().__init__(message)
        self.hint = hint


def close(name, got, wanted, atol, hint=0):
    """Raise Wrong unless `got` is `wanted` to within `atol`: same kind, shape and dtype, no NaN, largest error named.

    Tensors and arrays are compared in float64; lists and tuples item by item; text, truth and None exactly.
    """
    if hasattr(wanted, "dtype") and hasattr(wanted, "shape"):
        _close_arrays(name, got, wanted, atol, hint)
    elif isinstance(wanted, numbers.Real) and not isinstance(wanted, bool):
        if isinstance(got, bool) or not isinstance(got, numbers.Real):
            raise Wrong(f"{name} is {_kind(got)}, wanted a number", hint)
        if got != wanted and not abs(got - wanted) <= atol:  # a NaN is never <= anything
            raise Wrong(f"{name} is {got:.6g}, wanted {wanted:.6g}", hint)
    elif isinstance(wanted, (list, tuple)):
        if type(got) is not type(wanted):
            raise Wrong(f"{name} is {_kind(got)}, wanted {_kind(wanted)}", hint)
        if len(got) != len(wanted):
            raise Wrong(f"{name} has length {len(got)}, wanted {len(wanted)}", hint)
        for i, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            close(f"{name}[{i}]", mine, theirs, atol, hint)
    elif type(got) is not type(wanted):
        raise Wrong(f"{name} is {_kind(got)}, wanted {_kind(wanted)}", hint)
    elif got != wanted:
        raise Wrong(f"{name} is {_short(got)}, wanted {_short(wanted)}", hint)


def _close_arrays(name, got, wanted, atol, hint):
    import numpy as np

    if type(got) is not type(wanted) and not (hasattr(got, "dtype") and hasattr(wanted, "detach")
                                              and hasattr(got, "detach")):
        raise Wrong(f"{name} is {_kind(got)}, wanted {_kind(wanted)}", hint)
    if tuple(got.shape) != tuple(wanted.shape):
        raise Wrong(f"{name} has shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}", hint)
    if got.dtype != wanted.dtype:
        raise Wrong(f"{name} has dtype {got.dtype}, wanted {wanted.dtype}: keep the dtype you were given", hint)
    got, wanted = (np.asarray(a.detach().double().cpu() if hasattr(a, "detach") else a, dtype=np.float64)
                   for a in (got, wanted))
    with np.errstate(invalid="ignore"):
        error = np.where((got == wanted) | (np.isnan(got) & np.isnan(wanted)), 0.0, np.abs(got - wanted))
    if np.isnan(error).any():
        place = tuple(int(i) for i in np.argwhere(np.isnan(error))[0])
        raise Wrong(f"{name} is {got[place]} at {list(place)}, wanted {wanted[place]:.6g}", hint)
    if error.size and error.max() > atol:
        place = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
        share = f", {int((error > atol).sum())} of {error.size} values off" if error.size > 1 else ""
        raise Wrong(f"{name}: largest error {error.max():.3g} at {list(place)} "
                    f"(got {got[place]:.6g}, wanted {wanted[place]:.6g}){share}", hint)


def _kind(value):
    return "None (does the function end without `return`?)" if value is None else f"a {type(value).__name__}"


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def load(path, name=None):
    """A Python file as a module, whatever its folder and without leaving a __pycache__ beside it."""
    spec = importlib.util.spec_from_file_location(name or Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    exec(compile(Path(path).read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


def on_gpu(learner, name, *arguments, hints=None):
    """Run the learner's CUDA function `name` on the emulator under three orders of its threads; the last `Profile`.

    What the race detector finds is Wrong in its own words; `hints` says with which hint each kind of mistake begins.
    """
    from minillama import kernels

    for order in ("forward", "reverse", "shuffle:1"):
        profile, stopped = None, ""
        try:
            with kernels.schedule(order), kernels.profile(learner.cuda) as profile:
                getattr(learner.cuda, name)(*arguments)
        except RuntimeError as error:
            stopped = str(error)
        if profile and profile.findings:
            found = profile.findings[0]
            raise Wrong(found.text, (hints or {}).get(found.kind, 0))
        if stopped:
            _compiler_said(stopped)
    return profile


def _compiler_said(text):
    """An #error that nobody has replaced is what is to do; else the compiler's first line, without its folders."""
    if "your code here" in text:
        raise NotImplementedError
    first = next((line for line in text.splitlines() if " error: " in line), text.splitlines()[0])
    raise Wrong(first.rsplit("/", 1)[-1])


def child():
    """The child's whole life: `checks.py learner.py ...` in argv, one JSON object a line on what was stdout."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the learner prints goes another way, and its parent keeps only the beginning

    def tell(**event):
        events.write(json.dumps(event) + "\n")
        events.flush()

    module = load(sys.argv[1])
    checks = {name.removeprefix("check_"): value for name, value in vars(module).items() if name.startswith("check_")}
    _limit_memory()
    tell(checks=list(checks), hints=module.HINTS)
    for number, path in enumerate(sys.argv[2:]):
        learner = []
        tell(file=number, check="", **_verdict(lambda mine=learner, path=path: mine.append(_load_all(path)), path))
        passed = {None}
        for name, check in checks.items() if learner else ():
            if getattr(module, "AFTER", {}).get(name) not in passed:
                continue  # it measures what is not right yet: the grader says "to do"
            tell(file=number, start=name)
            if torch := sys.modules.get("torch"):  # not every exercise needs it, and it takes seconds to import
                torch.set_num_threads(1)
                torch.manual_seed(0)
            verdict = _verdict(lambda check=check, mine=learner: check(*mine), path)
            passed |= {name} if verdict["verdict"] == "ok" else set()
            tell(file=number, check=name, **verdict)
    tell(end=True)


def _load_all(path):
    """The learner's module; where a .cu file lies beside it, with that as `cuda`, compiled when it is first run."""
    module, source = load(path), Path(path).with_suffix(".cu")
    if source.is_file():
        from minillama.simt.emulator_build import CudaSource

        module.cuda = CudaSource(source.read_text(encoding="utf-8"), source.name)  # kept by its text, wherever it lies
    return module


def _verdict(call, path):
    """Call it, and say how that went: ok, todo or fail, the sentence, the hint to begin with, the seconds."""
    began, verdict, message, hint = time.perf_counter(), "ok", "", 0
    try:
        call()
    except NotImplementedError:
        verdict = "todo"
    except Wrong as wrong:
        verdict, message, hint = "fail", str(wrong), wrong.hint
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the learner's too
        verdict, message = "fail", _where(error, path)
    sys.stdout.flush()
    return {"verdict": verdict, "message": message, "hint": hint, "seconds": time.perf_counter() - began}


def _where(error, path):
    """`TypeError: ... (line 12 of ex05_rms_norm.py: the line)`; the last line of the learner's own file counts."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"SyntaxError: {error.msg} (line {error.lineno} of {Path(path).name}: {(error.text or '').strip()})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{said} (line {own[-1].lineno} of {Path(path).name}: {own[-1].line})" if own else said


def _limit_memory():
    """Where the system can: no more address space than now plus SPARE, and no core files."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + SPARE + (0 if "torch" in sys.modules else TORCH)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # Windows, macOS: the time limit still holds
        pass
