"""Builds the compiled parts, each a small library of its own; pyproject.toml says the rest.

Everything here is optional. Without PyTorch in the building environment (pip's isolation) or without a C++ compiler
the result is pure Python, and minillama runs on plain PyTorch. By hand: python setup.py build_ext --inplace
The CUDA library is built where PyTorch is a CUDA build and nvcc is found, or where MINILLAMA_CUDA=1 asks for it; no
GPU is needed to build it (cuda_build.py).
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # pip's build does not put it there
import cuda_build

LIBRARIES = {  # name: its sources, first the one that makes it a module. Without that one it is not built
    # pybind11: what is not a tensor operator
    "_C": ["csrc/bind_c.cpp", "csrc/cpu/bpe.cpp", "csrc/cpu/bpe_encoder.cpp", "csrc/cpu/bpe_unused.cpp",
           "csrc/cpu/bpe_vocabulary.cpp", "csrc/cpu/byte_bpe.cpp", "csrc/cpu/byte_bpe_training.cpp",
           "csrc/cpu/byte_words.cpp", "csrc/cpu/unigram.cpp", "csrc/cpu/unigram_seeds.cpp", "csrc/cpu/word_counts.cpp"],
    # TORCH_LIBRARY(minillama): the operators; (minillama_simt): the CUDA kernels, run by the emulator
    "_ops": ["csrc/ops.cpp", "csrc/bind_cpu.cpp", "csrc/bind_engine.cpp", "csrc/bind_matrix.cpp", "csrc/cpu/engine.cpp",
             "csrc/bind_nf4_cpu.cpp", "csrc/cpu/int8_dots.cpp", "csrc/cpu/int8_rows.cpp",
             "csrc/cpu/gguf_dots.cpp", "csrc/cpu/gguf_row.cpp", "csrc/cpu/gguf_rows.cpp", "csrc/cpu/gguf_tiles.cpp",
             "csrc/cpu/int8_tiles.cpp", "csrc/cpu/nf4_int8.cpp", "csrc/cpu/nf4_quantize.cpp",
             "csrc/bind_training.cpp", "csrc/cpu/row_loops.cpp",
             "csrc/cpu/attention.cpp", "csrc/cpu/attention_backward.cpp", "csrc/cpu/attention_loops.cpp",
             "csrc/cpu/matrix.cpp", "csrc/cpu/matrix_codes.cpp", "csrc/cpu/nf4_absmax.cpp", "csrc/cpu/nf4_matmul.cpp",
             "csrc/cpu/nf4_matvec.cpp", "csrc/cpu/nf4_row.cpp", "csrc/cpu/rope.cpp", "csrc/cpu/vectors.cpp",
             "csrc/bind_simt.cpp", "csrc/simt_kernels.cpp", "csrc/simt/scheduler.cpp",
             "csrc/simt/grid.cpp", "csrc/simt/device.cpp", "csrc/simt/calls.cpp", "csrc/simt/casts.cpp",
             "csrc/simt/faults.cpp", "csrc/simt/places.cpp", "csrc/simt/symbols.cpp"],
    # TORCH_LIBRARY(minillama) on GPUs. Its kernels, csrc/cuda/kernels.cu, are nvcc's and join when it is linked
    "_cuda": ["csrc/bind_cuda.cpp"],
}
FLAGS = ["-O3", "-g0"]
EXACT = [] if sys.platform == "win32" else ["-ffp-contract=off"]  # a * b + c rounds twice, as in Python
THREADS = ["-fopenmp"] if sys.platform == "linux" else []  # without it at::parallel_for quietly runs on one thread

os.environ.setdefault("MAX_JOBS", "2")  # a source with PyTorch's headers takes 0.6 GB to compile
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")  # .venv's own ninja
os.chdir(Path(__file__).resolve().parent)


def extension(name, sources):
    """One library; `_ops` and `_cuda` link PyTorch, `_C` needs pybind11 alone."""
    headers = sorted(str(path) for ending in ("h", "cuh") for path in Path("csrc").rglob(f"*.{ending}"))
    if name == "_C":
        import pybind11

        return Extension(f"minillama.{name}", sources, include_dirs=[pybind11.get_include(), "csrc"],
                         extra_compile_args=FLAGS + EXACT, language="c++", depends=headers)
    from torch.utils.cpp_extension import CppExtension

    more = ["-Wl,-Bsymbolic", *cuda_build.link_flags()] if name == "_cuda" else THREADS
    return CppExtension(f"minillama.{name}", sources, include_dirs=[str(Path("csrc").resolve())],
                        extra_compile_args=FLAGS + THREADS, extra_link_args=more, depends=headers)


def compiled():
    """Arguments for setup(): the libraries whose sources are here, if they can be built here at all."""
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError:
        return {}

    class Build(BuildExtension):
        def build_extension(self, ext):
            if ext.name == "minillama._cuda":
                ext.extra_objects = [cuda_build.compile_kernels(self.build_temp)]
            super().build_extension(ext)

    there = {name: paths for name, paths in LIBRARIES.items() if os.path.exists(paths[0])}
    if not cuda_build.wanted():
        there.pop("_cuda", None)
    return {"ext_modules": [extension(name, list(filter(usable, paths))) for name, paths in there.items()],
            "cmdclass": {"build_ext": Build}}


def usable(path):
    """Whether a source is here; the emulator's need POSIX."""
    return os.path.exists(path) and not (sys.platform == "win32" and "simt" in path)


class CopyPackage(build_py):
    """The package, and the lessons inside it with what they read: a notebook of theirs runs where it is installed."""

    def run(self):
        super().run()
        for place in ("lessons/*.py", "lessons/*.json", "bench/*.json", "tools/memory_*"):
            for path in Path().glob(place):
                target = Path(self.build_lib, "minillama", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


arguments = compiled()
setup(
    packages=[*find_packages(include=["minillama", "minillama.*"]), "minillama.csrc"],
    package_dir={"minillama.csrc": "csrc"},  # the kernels' sources travel as data, to be compiled anywhere
    package_data={"": ["py.typed", "*.html", "*.css", "*.js", "*.json", "*.txt", "**/*.jinja"],
                  "minillama.csrc": ["**/*"]},
    cmdclass={"build_py": CopyPackage, **arguments.pop("cmdclass", {})},
    **arguments,
)
