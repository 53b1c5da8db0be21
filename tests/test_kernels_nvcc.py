"""The same kernel files compile for real GPUs, without one: no spills, no stack, no doubles. Skips without nvcc."""

import re
import shutil
import subprocess

import pytest
from test_simt import ROOT

CSRC = ROOT / "csrc"
LIMITS = {"rope_v1": 40, "nf4_matmul_v1": 48, "nf4_matmul_backward_v1": 48, "flash_attention_v1": 192,
          "flash_delta_v1": 48, "flash_dq_v1": 192, "flash_dkv_v1": 200}  # registers a thread, of 65536 in an SM


def compiled(source, architecture, folder):
    """What ptxas says of each kernel: {demangled beginning of its name: [(registers, stack, spills), ...]}."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed here: the CUDA toolkit brings it, no GPU is needed")
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-I", CSRC, "-cubin", "-Xptxas",
               "-v,-warn-double-usage", source, "-o", folder / "kernels.cubin"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "double" not in done.stderr.lower(), done.stderr
    found = {}
    for part in done.stderr.split("Compiling entry function")[1:]:
        name = next(name for name in sorted(LIMITS, key=len, reverse=True) if name in part.splitlines()[0])
        stack, stores, loads = map(int, re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups())
        found.setdefault(name, []).append((int(re.search(r"Used (\d+) registers", part)[1]), stack, stores + loads))
    return found


def fits(found):
    for name, kernels in found.items():
        for registers, stack, spills in kernels:
            assert stack == spills == 0, f"{name}: {stack} bytes of stack, {spills} of spills"
            assert registers <= LIMITS[name], f"{name} uses {registers} registers"


def test_the_smallest_kernel_compiles_for_sm_80(tmp_path):
    source = tmp_path / "rope.cu"
    source.write_text('#include "cuda/rope.cuh"\n')
    found = compiled(source, "sm_80", tmp_path)
    assert len(found["rope_v1"]) == 3
    fits(found)


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90", "sm_120"])
def test_every_kernel_compiles_without_spills_and_stack(architecture, tmp_path):
    found = compiled(CSRC / "cuda" / "kernels.cu", architecture, tmp_path)
    assert set(found) == set(LIMITS)
    assert {name: len(kernels) for name, kernels in found.items()} == {
        name: 9 if name.startswith(("flash_attention", "flash_dq", "flash_dkv")) else 3 for name in LIMITS}
    fits(found)


@pytest.mark.long
def test_the_instructions_that_have_no_words_in_c_compile(tmp_path):
    """Every wrapper of simt/tensor.h and the two macros, as one kernel; their PTX is looked for by name."""
    source, ptx = tmp_path / "tensor.cu", tmp_path / "tensor.ptx"
    source.write_text("""
        #include "simt/simt.h"
        #include "simt/wmma.h"
        template <int n> __global__ void all(const float* in, float* out) {
          DYNAMIC_SHARED(float, tile);
          cp_async<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x, n);
          cp_async_commit();
          cp_async_wait<0>();
          __syncthreads();
          unsigned a[4], b[4];
          ldmatrix_x4(a, tile + 4 * threadIdx.x);
          ldmatrix_x4_trans(b, tile + 4 * threadIdx.x);
          const unsigned first[2] = {b[0], b[1]};
          float c[4] = {};
          mma_bf16_16816(c, a, first);
          mma_f16_16816(c, a, first);
          out[threadIdx.x] = fast_exp2(c[0] + c[1] + c[2] + c[3]);
        }
        void launch(const float* in, float* out) { LAUNCH((all<8>), 1, 32, 512, nullptr)(in, out); }
    """)
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed here: the CUDA toolkit brings it, no GPU is needed")
    subprocess.run(list(map(str, ["nvcc", "-std=c++17", "-arch=sm_80", "-I", CSRC, "-ptx", source, "-o", ptx])),
                   check=True)
    text = ptx.read_text()
    for words in ("cp.async.ca.shared.global", "cp.async.wait_group", "ldmatrix.sync.aligned.m8n8.x4.shared",
                  "ldmatrix.sync.aligned.m8n8.x4.trans.shared", "mma.sync.aligned.m16n8k16.row.col.f32.bf16",
                  "mma.sync.aligned.m16n8k16.row.col.f32.f16", "ex2.approx.ftz.f32"):
        assert words in text, words
