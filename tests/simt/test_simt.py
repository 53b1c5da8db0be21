"""The emulator runs kernels as a GPU may run them at its worst, and says what is wrong with them.

The programs lie in tests/simt: one executable with named cases, built once for each compiler and kept in build/.
"""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMT, PROGRAMS = ROOT / "csrc" / "simt", ROOT / "tests" / "simt"
SCHEDULES = ("forward", "reverse", "shuffle:1", "shuffle:2")


def build(compiler, *flags):
    """The path of the test program; skips where the compiler is absent. Kept until a source changes."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed here")
    sources = sorted([*SIMT.glob("*.cpp"), *PROGRAMS.glob("*.cpp")])
    headers = sorted([*SIMT.glob("*.h"), *PROGRAMS.glob("*.h")])
    state = hashlib.sha256(repr((compiler, flags)).encode())
    for path in sources + headers:
        state.update(path.read_bytes())
    program = ROOT / "build" / "simt_tests" / state.hexdigest()[:16]
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        sources.sort(key=lambda path: path.stem != "scheduler")  # it defines what the others only declare
        together = "".join(f'#include "{path}"\n' for path in sources)
        command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "csrc", *flags,
                   "-x", "c++", "-", "-ldl", "-lrt", "-o", f"{program}.{os.getpid()}"]  # one parse of the headers
        done = subprocess.run(list(map(str, command)), input=together, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        os.replace(f"{program}.{os.getpid()}", program)
    return program


@pytest.fixture(scope="module")
def program():
    """The program of the first C++ compiler found."""
    return build("g++" if shutil.which("g++") else "clang++")


def run(program, case, schedule="forward", stdin=b"", **environment):
    """(exit code, stdout) of one case."""
    done = subprocess.run([program, case], input=stdin, capture_output=True, timeout=60,
                          env={**os.environ, "SIMT_SCHEDULE": schedule, **environment})
    return done.returncode, done.stdout


def passes(program, case, schedule):
    code, out = run(program, case, schedule)
    assert code == 0, out.decode()


def cases_of(name):
    """Cases of a source that stand for themselves: the name is the law, REQUIREs decide."""
    bodies = re.split(r"^CASE\((\w+)\)", (PROGRAMS / name).read_text(encoding="utf-8"), flags=re.M)[1:]
    return [case for case, body in zip(bodies[::2], bodies[1::2], strict=True)
            if "REQUIRE" in body or "check_" in body]


LAWS = [case for name in ("blocks.cpp", "warps.cpp", "tensors.cpp") for case in cases_of(name)]


@pytest.mark.parametrize("case", LAWS)
def test_it_holds_under_every_schedule(program, case):
    for schedule in SCHEDULES:
        passes(program, case, schedule)


def test_each_missing_barrier_of_a_sum_shows_by_schedule_alone(program):
    """7 barriers, one left out at a time. Thread i adds what i + half wrote: run backwards it is always there already,
    so one schedule is not enough."""
    caught = {schedule: int(run(program, "a_sum_that_lacks_any_one_barrier", schedule)[1]) for schedule in SCHEDULES}
    assert caught["forward"] == 7 and caught["reverse"] == 0 and caught["shuffle:1"] >= 6, caught


# ---- schedules

def order(program, schedule):
    """Rows (block, time before or after the barrier) of the threads in the order in which they ran."""
    return np.array(run(program, "order", schedule)[1].split(), dtype=int).reshape(3, 2, 5)


def test_forward_and_reverse_are_what_they_say(program):
    forward = order(program, "forward")
    assert (forward == np.arange(5) + 100 * np.arange(3)[:, None, None]).all()
    assert (order(program, "reverse") == forward[::-1, :, ::-1]).all()


def test_a_shuffle_is_its_seeds_and_changes_at_every_barrier(program):
    seven = order(program, "shuffle:7")
    assert (seven == order(program, "shuffle:7")).all()
    assert (seven != order(program, "shuffle:8")).any()
    assert (np.sort(seven) == np.sort(seven[:, :1])).all() and (seven[:, 0] != seven[:, 1]).any()
    assert sorted(seven[:, 0, 0] // 100) == [0, 1, 2]


def test_an_unknown_schedule_is_refused(program):
    done = subprocess.run([program, "order"], capture_output=True, env={**os.environ, "SIMT_SCHEDULE": "shuffle:x"})
    assert b"use forward, reverse or shuffle:SEED" in done.stdout


# ---- what is wrong with a kernel

def line_marked(case):
    lines = (PROGRAMS / "faults.cpp").read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"// line: {case}"))


FAULTS = {  # what the message holds besides kernel, block, thread and line
    "deadlock": ("half_waits", "16 thread(s), the first (0,0,0), wait in __syncthreads()", "for lanes 0-15 of warp 0"),
    "different_barriers": ("two_barriers", "wait at different barriers"),
    "absent_lane": ("absent", "(4,0,0)", "__shfl_down_sync() reads lane 20, which does not take part"),
    "outside_its_mask": ("outside", "(4,0,0)", "by a lane that its own mask leaves out"),
    "mixed_operations": ("mixed", "different operations, __a"),
    "endless": ("spinning", "(0,0,0)", "no progress in 0.2"),
    "endless_atomics": ("spinning_politely", "no progress in 0.2"),
    "trap": ("trapping", "(9,0,0)", "__trap()"),
    "unaligned_rows": ("unaligned", "not 16-byte aligned"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_reported_with_kernel_block_thread_and_line(program, case):
    code, out = run(program, case, SIMT_SECONDS="0.2")
    text, (kernel, *words) = out.decode(), FAULTS[case]
    assert code == 3, text
    assert re.match(rf"kernel {kernel}, block \(0,0,0\), thread \(\d+,\d+,0\), \S*faults.cpp:\d+: ", text), text
    assert all(word in text for word in words) and f"faults.cpp:{line_marked(case)}" in text, text


@pytest.mark.parametrize(("case", "words"), [
    ("too_many_threads", "block (1025,1,1) is too large: at most (1024,1024,64) and 1024"),
    ("too_deep_block", "block (1,1,65) is too large"),
    ("too_wide_grid", "grid (1,65536,1) is too large"),
    ("empty_grid", "must not have a 0"),
    ("too_much_shared", "49153 bytes of dynamic shared memory: over 49152"),
    ("too_much_opted_in", "asks for 101377 bytes of shared memory, and a block on sm_89 has at most 101376"),
])
def test_a_launch_that_no_device_would_take_is_refused(program, case, words):
    code, out = run(program, case)
    assert code == 3 and words in out.decode(), out.decode()


def test_a_device_with_more_shared_memory_may_be_chosen(program):
    assert run(program, "opted_in")[0] == 0
    assert run(program, "too_much_opted_in", SIMT_DEVICE="sm_90")[0] == 0
    assert b"sm_80, sm_86" in run(program, "opted_in", SIMT_DEVICE="sm_1")[1]


def test_life_goes_on_after_an_error(program):
    passes(program, "life_goes_on_after_an_error", "shuffle:3")


# ---- 16-bit floats

def test_halves_and_bfloat16_round_to_the_nearest_even(program):
    """Against numpy and torch: random bit patterns, and all halves with their neighbours half a step away."""
    import torch

    rng = np.random.default_rng(0)
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    ties = (finite[:-1] + finite[1:]) / 2  # exact: a half has 11 bits, a float 24
    values = np.concatenate([rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32), halves, ties,
                             np.float32([65519.996, 65520, 2**-25, 2**-24 * 1.5, 3.39e38, np.inf, -np.inf])])
    values = np.concatenate([values, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(0))])
    out = np.frombuffer(run(program, "encode", stdin=values.tobytes())[1], np.uint16).reshape(-1, 2)
    real = ~np.isnan(values)
    with np.errstate(over="ignore"):
        assert (out[real, 0] == values[real].astype(np.float16).view(np.uint16)).all()
    brain = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert (out[real, 1] == brain[real]).all()
    assert (out[~real] == 0x7FFF).all()  # the GPU's NaN


def test_all_16_bit_patterns_are_read(program):
    import torch

    out = np.frombuffer(run(program, "decode")[1], np.float32).reshape(-1, 2)
    bits = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(out[:, 0], bits.view(np.float16).astype(np.float32), equal_nan=True)
    brain = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(out[:, 1], brain, equal_nan=True)


# ---- other builds

@pytest.mark.long
@pytest.mark.parametrize(("compiler", "flags"), [("clang++", ()), ("g++", ("-DSIMT_UCONTEXT",)), ("g++", ("-O3",))])
def test_another_build_keeps_the_same_laws(compiler, flags):
    other = build(compiler, *flags)
    for case in [*LAWS, "life_goes_on_after_an_error"]:
        for schedule in SCHEDULES:
            passes(other, case, schedule)


@pytest.mark.long
def test_a_barrier_costs_at_most_60_nanoseconds_a_thread():
    fast = build("g++", "-O2")
    assert float(run(fast, "nanoseconds_of_a_barrier")[1]) <= 60
