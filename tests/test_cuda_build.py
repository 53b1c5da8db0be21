"""Laws of building for GPUs: no GPU is asked for, nothing is built unasked, and what is built imports anywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402

GIVEN = {"MINILLAMA_CUDA": "1", "MINILLAMA_CUDA_ARCHS": "80"}


def test_the_cuda_library_is_built_where_torch_is_a_cuda_build_and_nvcc_is_there_or_on_request(monkeypatch):
    import torch

    for version, compiler, asked, expected in (
            (None, "nvcc", "", False), ("13.0", "nvcc", "", True), ("13.0", None, "", False),
            (None, "nvcc", "1", True), ("13.0", "nvcc", "0", False)):
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(cuda_build, "nvcc", lambda compiler=compiler: compiler)
        monkeypatch.setenv("MINILLAMA_CUDA", asked)
        assert cuda_build.wanted() is expected, (version, compiler, asked)


def test_what_cannot_be_built_is_refused_with_the_next_step(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_build, "nvcc", lambda: None)
    monkeypatch.setenv("MINILLAMA_CUDA", "1")
    with pytest.raises(SystemExit, match=r"there is no nvcc: pip install 'minillama\[cuda\]'"):
        cuda_build.wanted()
    monkeypatch.setenv("MINILLAMA_CUDA", "yes")
    with pytest.raises(SystemExit, match="'yes': 1 builds"):
        cuda_build.wanted()
    for wrong in ("", "sm_80", "8.0", "80;90"):
        monkeypatch.setenv("MINILLAMA_CUDA_ARCHS", wrong)
        with pytest.raises(SystemExit, match="name compute capabilities"):
            cuda_build.compile_kernels(tmp_path)


def test_nvcc_is_found_by_cuda_home_first(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "nvcc"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_build.nvcc() == str(fake)


@pytest.mark.long
def test_the_cuda_library_imports_without_a_gpu_and_has_every_operator(tmp_path):
    """Built for one architecture from a copy of the tree, beside whatever PyTorch this is."""
    if not cuda_build.nvcc():
        pytest.skip("nvcc is not installed here: the CUDA toolkit or `pip install minillama[cuda]` brings it")
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", "*.so", "build")
    for name in ("csrc", "minillama"):
        shutil.copytree(ROOT / name, tree / name, ignore=skip)
    for name in ("setup.py", "cuda_build.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    environment = {**os.environ, **GIVEN, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    code = ("import torch\nfrom minillama import kernels\nassert 'cuda' in kernels.built_backends()\n"
            "for name in ('rope', 'rope_', 'rope_into', 'nf4_matmul', 'nf4_matmul_backward', 'flash_attention',\n"
            "             'flash_attention_backward'):\n"
            "    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'minillama::{name}', 'CUDA'), name\n"
            "try:\n    kernels.flash_attention(*[torch.zeros(1, 1, 2, 4)] * 3, backend='cuda')\n"
            "except ValueError as error:\n    print(error)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "x is on cpu, and backend 'cuda' takes tensors on cuda" in done.stdout
