"""Every barrier of every kernel is needed: left out, one at a time, the results change by schedule alone.

tests/simt/kernels/planted.cpp runs the kernels with the barrier on one line skipped.
"""

import functools
import hashlib
import os
import shutil
import subprocess

import pytest
import torch
from test_simt import PROGRAMS, ROOT, SCHEDULES, SIMT

from minillama import kernels
from minillama.simt.emulator_build import RUNTIME

BARRIER_WORDS = ("__syncthreads();", "__syncwarp();")
KERNELS = ROOT / "csrc" / "cuda"


@pytest.fixture(scope="module")
def planted():
    """The program, little optimised: with -O0 its runs, with -O1 its compiler would take longer."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    sources = [*(SIMT / name for name in RUNTIME if "/" not in name),
               PROGRAMS / "kernels" / "planted.cpp"]
    state = hashlib.sha256()
    for path in sorted([*sources, *SIMT.glob("*.h"), *KERNELS.iterdir(), *KERNELS.parent.glob("*.h")]):
        state.update(path.read_bytes())
    program = ROOT / "build" / "simt_tests" / f"planted-{state.hexdigest()[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        partial = f"{program}.{os.getpid()}"
        command = ["g++", "-std=c++17", "-Og", "-w", "-I", ROOT / "csrc", "-x", "c++", "-", "-ldl", "-lrt",
                   "-o", partial]
        done = subprocess.run(list(map(str, command)), input="".join(f'#include "{path}"\n' for path in sources),
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        os.replace(partial, program)
    return program


@functools.cache
def run(program, kernel, barrier, schedule):
    done = subprocess.run([program, kernel, barrier], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "SIMT_SCHEDULE": schedule})
    return done.stdout if done.returncode == 0 else "error: " + done.stderr


def barriers():
    """FILE:LINE of every barrier in the kernels' sources, but those between blocks: here one runs after another."""
    return [f"{path.name}:{number}" for path in sorted(KERNELS.glob("*.cuh"))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if line.strip().startswith(BARRIER_WORDS) and "between blocks" not in line]


def test_the_program_passes_every_barrier(planted):
    listed = subprocess.run([planted, "list"], capture_output=True, text=True).stdout.splitlines()[-1].split()
    between = [name for name in listed if name not in barriers()]
    assert set(listed) >= set(barriers()) and len(listed) >= 10 and len(between) == 2, between


@pytest.mark.parametrize("kernel", ["attention", "tensor", "wide tensor", "gradients", "wide gradients", "decoding",
                                    "nf4", "nf4 row", "nf4 tensor"])
def test_the_results_do_not_depend_on_the_schedule(planted, kernel):
    results = {run(planted, kernel, "none", schedule) for schedule in SCHEDULES}
    only = results.pop()
    assert not results and "nan" not in only and "error" not in only


@pytest.mark.parametrize("barrier", barriers())
def test_a_missing_barrier_shows_under_every_schedule(planted, barrier):
    kinds = {"nf4_one_row": "nf4 row", "nf4_tensor": "nf4 tensor", "nf4_backward": "nf4 tensor", "nf4": "nf4",
             "flash_tensor": "tensor", "flash_decoding": "decoding", "flash_backward": "gradients",
             "flash_gradient": "gradients", "flash_fragments": "gradients", "flash_wide_backward": "wide gradients",
             "flash_wide": "wide tensor"}
    kernel = next((kinds[start] for start in kinds if barrier.startswith(start)), "attention")
    right = run(planted, kernel, "none", "forward")
    assert all(run(planted, kernel, barrier, schedule) != right for schedule in SCHEDULES)


TURNS = """
using namespace minillama::kernels;
extern "C" void run(const void* q, const void* k, const void* out, const float* rows, float* delta, float* sums,
                    int* turns, void* dq, void* dk, void* dv, int T, int S) {
  const Strided Q{q, T * 8, T * 8, 8}, K{k, S * 8, S * 8, 8};
  flash_attention_backward(DType::bf16, Q, K, K, Q, {}, nullptr, out, rows, nullptr, delta, sums,
                           reinterpret_cast<unsigned*>(turns), dq, dk, dv, {1, 1, 1, T, S, 8, 1, false}, nullptr);
}
"""


@pytest.mark.long
@pytest.mark.parametrize(("old", "new"), [
    ("", ""), ("at.has_sum = wait_for_turn(turns + 1 + tile, order(reach))", "at.has_sum = order(reach) > 0"),
    ("  __threadfence();  // what this block wrote is seen before\n", "")], ids=["right", "no wait", "no fence"])
def test_a_turn_that_nobody_waits_for_or_that_is_passed_before_a_fence_is_a_race_between_blocks(old, new):
    """Of the sums of dQ. One block after another runs here: the results are right all the same."""
    T, S = 33, 140
    header = (KERNELS / "flash_backward_tensor_cores.cuh").read_text(encoding="utf-8")
    assert old == "" or header.count(old) == 1
    header = (header.replace(old, new) if old else header).replace('#include "flash', '#include "cuda/flash')
    wide = "return flash_wide_backward(q, k, v, d_out, bits, rows, delta, dq, dk, dv, shape, stream)"
    assert header.count(wide) == 1
    header = header.replace(wide, "return")  # in another file, and no head is wide here
    source = kernels.CudaSource(header + TURNS, name="turns.cu")
    q, k = torch.randn(T, 8).bfloat16(), torch.randn(S, 8).bfloat16()
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(k)
    turns = torch.zeros(8, dtype=torch.int32)
    with kernels.profile(source) as p:
        source.run(q, k, q, torch.ones(T, 2), torch.zeros(T), torch.zeros(64, 32), turns, dq, dk, dv, T, S)
    assert bool(p.findings) == bool(old)
    assert all(finding.kind == "race" and "another block" in str(finding) for finding in p.findings), p.findings
