"""CUDA sources compiled by g++ over the emulator (csrc/simt), plain or with a profiler that sees every access.

    lab = CudaSource("transpose.cu")              compiled at the first call, kept until a source changes
    lab.transpose(x, y, 64)                       calls its extern "C" void transpose(const float* x, float* y, int n)

The profiled form is the same source with the compiler's thread-sanitizer calls received by csrc/simt/profile: see
docs/simt.md for what is counted and what not. Needs g++; for line numbers also addr2line, which comes with it.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import re
import sys
from pathlib import Path

import torch

from minillama.simt.compiler import contraction, gcc, is_own, private_folder, require_compiler

# g++'s flags, each with its reason, and the emulator's own sources
HOW = json.loads(Path(__file__).with_name("emulator_build.json").read_text(encoding="utf-8"))
FAST, CASTS, PROFILED = ([flag for flags in HOW[form].values() for flag in flags.split()]
                         for form in ("fast", "checked conversions", "profiled"))
FAST += CASTS * (sys.platform == "linux" and platform.machine() == "x86_64")  # see csrc/simt/casts.cpp
RUNTIME, PROFILER, PROGRAM, [GUARD] = (HOW[part].split() for part in ("runtime", "profiler", "program", "guard"))
SCALARS = {name: getattr(ctypes, kind) for name, kind in HOW["scalars"].items()}  # C types that CudaSource passes
DTYPES = {name: getattr(torch, kind) for name, kind in HOW["dtypes"].items()}
_in_use = [0]  # tables of the kernels that backend "simt" ran and runs; 0 is the compiled library's own
order = os.environ.get("SIMT_SCHEDULE", "forward")  # of emulated threads, see minillama.kernels.schedule


def source_folder():
    """The folder csrc: inside the package when it was installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    raise FileNotFoundError(f"the kernel sources (csrc) are neither in {package} nor beside it: reinstall minillama")


def build_folder():
    """Where compiled files are kept: build/ of a checkout; otherwise $XDG_CACHE_HOME or ~/.cache, in minillama/."""
    beside = source_folder().parent
    if (beside / "setup.py").is_file() and os.access(beside, os.W_OK):
        return beside / "build" / "simt"
    return private_folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minillama" / "simt")


def build(source, profiled, before="", contracted=False):
    """The path of a shared library of this C++ or CUDA source, with the text `before` in front of it; compiled unless
    it is there. contracted: see `compiler.contraction`. RuntimeError where that fails."""
    require_compiler()
    source = Path(source).resolve()
    folder, headers = source_folder(), sorted([*source_folder().rglob("*.h"), *source_folder().rglob("*.cuh")])
    flags = [*FAST, *(PROFILED if profiled else ["-g1"]), *contraction(contracted), "-include",
             str(folder / "simt" / "simt.h"), f"-I{folder}"]
    runtime, state = compile_runtime(build_folder(), profiled)
    state.update(repr(flags).encode() + before.encode())
    for path in [source, *headers, *source.parent.glob("*.h")]:
        state.update(str(path).encode() + path.read_bytes())
    library = build_folder() / f"{source.stem}-{state.hexdigest()[:16]}.so"
    if not is_own(library):
        header = library.with_suffix(".h")  # not in the source's own text: its line numbers are to stay
        header.write_text(before, encoding="utf-8")
        flags += ["-include", str(header)]
        kernels, guard = library.with_suffix(".o"), [str(folder / "simt" / GUARD)] * profiled
        _compile([*flags, "-c", "-x", "c++", str(source)], "", kernels)
        # the runtime comes first, so that what both hold of the standard library is the copy that nobody listens to
        _compile([str(runtime), *guard, str(kernels), *guard, "-fPIC", "-shared", "-Wl,-Bsymbolic", "-ldl", "-lrt",
                  "-pthread"], "", library)
        kernels.unlink()
    return library


def compile_runtime(target, profiled, more=()):
    """(object file in the folder `target`, hash of what is in it) of the emulator's own sources and `more` of them."""
    here = source_folder() / "simt"
    names = [here / name for name in [*RUNTIME, *(PROFILER * profiled), *more]]
    flags = [*FAST, *(["-DSIMT_PROFILE"] * profiled), f"-I{here.parent}"]
    state = hashlib.sha256(repr(flags).encode())
    for path in [*names, here / GUARD, *sorted(here.rglob("*.h"))]:
        state.update(path.read_bytes())
    runtime = target / f"runtime-{state.hexdigest()[:16]}.o"
    _compile([*flags, "-c", "-x", "c++", "-"], "".join(f'#include "{name}"\n' for name in names), runtime)
    return runtime, state


def _compile(arguments, text, target):
    if not is_own(target) and (said := gcc(arguments, text, target)):
        raise RuntimeError(f"g++ does not compile this:\n{said[-4000:]}")


def load(path):
    """The library as a ctypes object, its text functions declared; errors are kept for `simt_take_error`."""
    library = ctypes.CDLL(str(path))
    for name in ("simt_take_error", "simt_set_schedule", "simt_json"):
        if hasattr(library, name):
            getattr(library, name).restype = ctypes.c_char_p
    return library


@contextlib.contextmanager
def kernels_of(library):
    """Within it, backend "simt" runs the kernels of this library; afterwards those that it ran before."""
    library.minillama_kernels.restype = ctypes.c_int64
    _in_use.append(library.minillama_kernels())
    torch.ops.minillama_simt.use_kernels(_in_use[-1])
    torch.ops.minillama_simt.set_schedule(order)
    try:
        yield
    finally:
        _in_use.pop()
        torch.ops.minillama_simt.use_kernels(_in_use[-1])
        torch.ops.minillama_simt.set_schedule(order)


class CudaSource:
    """A CUDA source whose `extern "C" void f(...)` functions can be called with tensors and numbers.

    source: a path, or the text itself (then `name` is the file name to show). Each function launches its kernels by
    LAUNCH((kernel), grid, block, shared_bytes, nullptr)(arguments); "simt/simt.h" is included for it.
    Tensors are passed as pointers and must be contiguous, on the CPU and of the dtype that the pointer names: TypeError
    otherwise. What the emulator finds wrong is a RuntimeError with kernel, block, thread and line.
    """

    def __init__(self, source, name="kernel.cu"):
        if "\n" in str(source):
            digest = hashlib.sha256(str(source).encode()).hexdigest()[:16]
            self.path = build_folder() / "sources" / digest / name
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(str(source), encoding="utf-8")
        else:
            self.path = Path(source).resolve()
        self.text = self.path.read_text(encoding="utf-8")
        self.profiled, self._libraries = False, {}
        found = re.findall(r'extern\s+"C"\s+void\s+(\w+)\s*\(([^)]*)\)', self.text)
        self._functions = {name: [part.strip() for part in text.split(",") if part.strip()] for name, text in found}

    def library(self):
        """The ctypes library in its present form: plain, or profiled inside `kernels.profile(self)`."""
        if self.profiled not in self._libraries:
            library = load(build(self.path, self.profiled, "".join(map(_caught, self._functions.items()))))
            library.simt_keep_errors(1)
            self._libraries[self.profiled] = library
        return self._libraries[self.profiled]

    def __getattr__(self, name):
        parameters = self.__dict__.get("_functions", {}).get(name)
        if parameters is None:
            raise AttributeError(f'{self.__dict__.get("path")} has no extern "C" void {name}(...)')
        return lambda *arguments: self._call(name, parameters, arguments)

    def _call(self, name, parameters, arguments):
        if len(arguments) != len(parameters):
            raise TypeError(f"{name} takes ({', '.join(parameters)}), given {len(arguments)} arguments")
        library = self.library()
        passed = [_argument(parameter, value) for parameter, value in zip(parameters, arguments, strict=True)]
        tensors = [(value, parameter) for value, parameter in zip(arguments, parameters, strict=True)
                   if isinstance(value, torch.Tensor)]
        library.simt_set_schedule(order.encode())
        for tensor, parameter in tensors:
            label = re.findall(r"\w+", parameter)[-1]
            library.simt_watch(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), label.encode())
        try:
            getattr(library, f"simt_caught_{name}")(*passed)
        finally:
            for tensor, _ in tensors:
                library.simt_forget(ctypes.c_void_p(tensor.data_ptr()))
        if error := library.simt_take_error().decode():
            raise RuntimeError(error)


def _caught(function):
    """C++ text of a function that calls this one and keeps what it throws, which must not reach Python's C code."""
    name, parameters = function
    passed = ", ".join(re.findall(r"\w+", parameter)[-1] for parameter in parameters)
    return f'SIMT_CAUGHT({name}, ({", ".join(parameters)}), ({passed}))\n'


def _argument(parameter, value):
    """`value` as the C type that the parameter's declaration, such as "const float* x", names."""
    kind = next((word for word in re.findall(r"\w+", parameter) if word != "const"), "")
    if "*" not in parameter:
        if kind not in SCALARS:
            raise TypeError(f"parameter {parameter!r}: numbers are passed as one of {', '.join(SCALARS)}")
        return SCALARS[kind](value)
    if value is None:
        return ctypes.c_void_p(None)
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or not value.is_contiguous():
        raise TypeError(f"parameter {parameter!r} wants a contiguous tensor on the CPU, not {type(value).__name__}")
    if kind in DTYPES and value.dtype != DTYPES[kind]:
        raise TypeError(f"parameter {parameter!r} wants {DTYPES[kind]}, given {value.dtype}")
    return ctypes.c_void_p(value.data_ptr())


# ---- without the emulator

def load_source(name, sources, flags=("-O3",), python_module=True):
    """Compile C++ files and load them: the quick way to try an idea. Returns the module (see `python_module`).

    sources: paths; a relative one that does not exist here is looked for in csrc. Files of csrc can be included as
    "cpu/rope.h". python_module=False: only load it, for files that register operators. A second call with unchanged
    files compiles nothing. Raises FileNotFoundError for a missing file, RuntimeError without a compiler.
    """
    from torch.utils import cpp_extension

    require_compiler(os.environ.get("CXX", "c++"), linux_only=False)
    tools = str(Path(sys.executable).parent)  # ninja lies beside python, on PATH or not
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = tools + os.pathsep + os.environ["PATH"]
    os.environ.setdefault("MAX_JOBS", "2")  # a source with PyTorch's headers takes 0.6 GB to compile
    threads = ["-fopenmp"] if sys.platform == "linux" else []  # without it at::parallel_for runs on one thread
    return cpp_extension.load(
        name, [str(_find_source(path)) for path in sources], extra_cflags=[*flags, *threads], extra_ldflags=threads,
        extra_include_paths=[str(source_folder())], is_python_module=python_module,
    )


def _find_source(path):
    for candidate in (Path(path), source_folder() / path):
        if candidate.is_file():
            return candidate.resolve()
    raise FileNotFoundError(f"source {str(path)!r} is neither a file here nor one in {source_folder()}")
