"""The one door to the compiled kernels. Plain PyTorch is the reference and the default; a kernel is asked for by name.

    built_backends()                          what there is here: ("reference",) or ("reference", "cpu")
    fused_rope(x_BTHd, rotations)             minillama.rope in one pass, with its gradient
    load_source("lab", ["cpu/rope.cpp", ...]) compile a file of csrc/, or your own, now

Nothing falls back in silence: a backend that is not built raises an error that says how to build it.
"""

import functools
import importlib
import os
import shutil
import sys
from pathlib import Path

import torch

BUILD = "python setup.py build_ext --inplace"


def built_backends():
    """Names of the backends that can be asked for: "reference" always, "cpu" where its library was compiled."""
    return ("reference",) if _missing() else ("reference", "cpu")


def require(backend):
    """Return quietly if `backend` is built here; otherwise raise and say how to build it."""
    if backend not in ("reference", "cpu"):
        raise ValueError(f"backend {backend!r} is not known: choose 'reference' or 'cpu'")
    if backend not in built_backends():
        raise RuntimeError(
            f"backend {backend!r} is not built here ({_missing()}). In the checkout, with a C++ compiler: {BUILD}"
        )


@functools.cache
def _missing():
    """Load the operators and register what they need in Python; the reason as text if that is not possible."""
    try:
        importlib.import_module("minillama._ops")
    except ModuleNotFoundError:
        return "minillama._ops was never compiled"
    except ImportError as error:  # most often: compiled for another PyTorch
        return f"minillama._ops does not load: {error}"
    torch.library.register_fake("minillama::rope", _rope_fake)
    torch.library.register_autograd("minillama::rope", _rope_backward, setup_context=_rope_remember)
    return None


# ---- RoPE

def fused_rope(x, rotations, interleaved=True):
    """`minillama.rope.apply_rope` (or, not interleaved, `apply_rope_half_split`) by the compiled CPU kernel.

    x: (..., T, H, d) fp32, bf16 or fp16; rotations: (T, d/2) or x's batch + (T, d/2), complex64. Computed in fp32,
    rounded once, as the reference is. Has a gradient for x, none for the table. RuntimeError if it is not built.
    """
    require("cpu")
    return torch.ops.minillama.rope(x, rotations.real, rotations.imag, interleaved)


def _rope_fake(x, cos, sin, interleaved):
    """Shape, dtype and strides of the result, for torch.compile: a contiguous tensor like x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rope_remember(ctx, inputs, output):
    _, cos, sin, ctx.interleaved = inputs
    ctx.save_for_backward(cos, sin)


def _rope_backward(ctx, gradient):
    """A rotation's transpose is its inverse: the gradient is turned back by the same angles."""
    cos, sin = ctx.saved_tensors
    return torch.ops.minillama.rope(gradient, cos, -sin, ctx.interleaved), None, None, None


# ---- sources compiled on the spot

def source_folder():
    """The folder csrc: inside the package when it was installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    raise FileNotFoundError(f"the kernel sources (csrc) are neither in {package} nor beside it: reinstall minillama")


def load_source(name, sources, flags=("-O3",), python_module=True):
    """Compile C++ files and load them: the quick way to try an idea. Returns the module (see `python_module`).

    sources: paths; a relative one that does not exist here is looked for in csrc. Files of csrc can be included as
    "cpu/rope.h". python_module=False: only load it, for files that register operators. A second call with unchanged
    files compiles nothing. Raises FileNotFoundError for a missing file, RuntimeError without a compiler.
    """
    from torch.utils import cpp_extension

    if not shutil.which(os.environ.get("CXX", "c++")):
        raise RuntimeError("there is no C++ compiler here: sudo apt install g++ (macOS: xcode-select --install)")
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
