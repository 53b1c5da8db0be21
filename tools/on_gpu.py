"""Build the CUDA kernels for this computer's GPU, hold them to float64 and time them: `python3 run.py gpu`.

What it prints is one report in Markdown, to be pasted whole. It ends at the first step that fails, with its exit code.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = (("build", ["setup.py", "-q", "build_ext", "--inplace"]),
         ("verify", ["-m", "minillama", "kernels", "verify", "--backend", "cuda", "--thorough"]),
         ("time", ["bench/gpu.py"]))


def why_not():
    """Why nothing can be run here, and what to do; "" where it can."""
    sys.path.insert(0, str(ROOT))
    import torch

    from cuda_build import nvcc

    if not torch.cuda.is_available():
        return (f"there is no GPU that PyTorch {torch.__version__} can use (its CUDA: {torch.version.cuda or 'none'}): "
                "`nvidia-smi` shows what the driver sees; MINILLAMA_TORCH=torch python3 run.py info takes a CUDA build")
    return "" if nvcc() else "there is no nvcc: .venv/bin/python -m pip install '.[cuda]', or set CUDA_HOME"


def main():
    if problem := why_not():
        print(problem)
        return 2
    import torch

    major, minor = torch.cuda.get_device_capability()
    env = {"MINILLAMA_CUDA_ARCHS": f"{major}{minor}", **os.environ, "MINILLAMA_CUDA": "1"}
    for name, words in STEPS:
        print(f"\n## {name}: python {' '.join(words)}\n", flush=True)
        if code := subprocess.run([sys.executable, *words], cwd=ROOT, env=env).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
