"""How setup.py compiles csrc/cuda for GPUs: nvcc makes one object file, the C++ compiler links it like any other.

nvcc is looked for in CUDA_HOME, on PATH, and in the packages of `pip install minillama[cuda]`. The launchers include no
header of PyTorch, so one way serves every PyTorch, one that was built without CUDA included, and no GPU is asked for.
MINILLAMA_CUDA_ARCHS="80 90" names compute capabilities; without it, those below, and PTX for what comes after them.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

ARCHITECTURES = "80 89 90 120"  # A100; RTX 40; H100; RTX 50


def nvcc():
    """Path of the compiler, or None."""
    places = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in places:
        if (found := shutil.which("nvcc", path=os.path.join(place, "bin"))):
            return found
    spec = importlib.util.find_spec("nvidia")
    packaged = [str(path) for root in (spec.submodule_search_locations if spec else ()) for path in
                Path(root).glob("cu*/bin")]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(packaged))


def wanted():
    """Whether the CUDA library is to be built. SystemExit where it was asked for and cannot be."""
    import torch

    asked = os.environ.get("MINILLAMA_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"MINILLAMA_CUDA is {asked!r}: 1 builds the CUDA library, 0 does not")
    if asked == "1" and not nvcc():
        raise SystemExit("MINILLAMA_CUDA=1, but there is no nvcc: pip install 'minillama[cuda]', or set CUDA_HOME")
    return asked == "1" or (not asked and bool(torch.version.cuda) and bool(nvcc()))


def compile_kernels(folder):
    """csrc/cuda/kernels.cu as an object file in `folder`, for all architectures -> its path."""
    names = os.environ.get("MINILLAMA_CUDA_ARCHS", ARCHITECTURES).split()
    if not names or not all(re.fullmatch(r"\d{2,3}[af]?", name) for name in names):
        raise SystemExit(f"MINILLAMA_CUDA_ARCHS is {' '.join(names)!r}: name compute capabilities, such as '80 90'")
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    newest = f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}"  # PTX, for GPUs that come later
    path = Path(folder) / "cuda_kernels.o"
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([nvcc(), "-std=c++17", "-O3", "--threads", "2", *targets, newest, "-Icsrc",
                    "-Xcompiler", "-fPIC,-fvisibility=hidden", "-c", "csrc/cuda/kernels.cu", "-o", str(path)],
                   check=True)
    return str(path)


def link_flags():
    """The CUDA runtime, linked in statically: importing the library needs no other of CUDA's files."""
    said = subprocess.run([nvcc(), "--dryrun", "-c", "csrc/cuda/kernels.cu", "-o", os.devnull], capture_output=True,
                          text=True).stderr
    folders = re.findall(r'"-L([^"]+)"', next((line for line in said.splitlines() if "LIBRARIES=" in line), ""))
    folders += [str(Path(nvcc()).resolve().parents[1] / name) for name in ("lib64", "lib")]  # pip's layout
    return [*(f"-L{folder}" for folder in folders if os.path.isdir(folder)), "-lcudart_static", "-lrt", "-ldl",
            "-lpthread"]
