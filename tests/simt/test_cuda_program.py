"""CUDA programs with their own main() are built without nvcc, run, and end as they should.

Programs: tests/simt/programs; basics.cu checks itself, faults.cu goes wrong in a way that its argument chooses.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from minillama.cli.command_line import main
from minillama.simt import cuda_program
from minillama.simt.cuda_program import Unsupported, build, run

FOLDER = Path(__file__).resolve().parent / "programs"
compiles = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                              reason="programs are compiled on the spot by g++, on Linux")


def outcome(name, *arguments, **settings):
    """(result, output) of a program, built if need be."""
    out = []
    result = run(build(FOLDER / name), [str(a) for a in arguments], write=out.append, **settings)
    return result, b"".join(out).decode()


# ---- whole programs

@compiles
def test_a_program_that_was_written_for_a_gpu_passes_its_own_checks():
    for schedule in ("forward", "reverse", "shuffle:3"):
        result, out = outcome("basics.cu", "one", schedule=schedule)
        assert result.code == 0 and not result.findings and "0 wrong, 1 argument(s)" in out, out


@compiles
@pytest.mark.parametrize("schedule", ["forward", "reverse", "shuffle:5"])
def test_groups_grids_and_textures_do_what_a_gpu_does(schedule):
    result, out = outcome("groups.cu", schedule=schedule)
    assert result.code == 0 and not result.findings and "0 wrong" in out, (out, result)


@compiles
@pytest.mark.parametrize("name", ["launches", "halves", "cub"])
def test_what_programs_write_builds_and_is_right(name):
    result, out = outcome(f"{name}.cu")
    assert result.code == 0 and not result.findings and out == "0 wrong\n", (out, result)


@compiles
def test_a_race_gives_wrong_results_under_one_schedule_of_two():
    assert {outcome("faults.cu", schedule=order)[0].code for order in ("forward", "reverse")} == {5, 0} or \
        outcome("faults.cu", schedule="reverse")[0].code == 5


@compiles
def test_an_endless_kernel_is_an_error_the_program_sees_and_we_name(monkeypatch):
    monkeypatch.setenv("SIMT_SECONDS", "0.4")
    result, _ = outcome("faults.cu", 1)
    assert result.code == 0 and "kernel spin" in result.findings[0] and "endless" in result.findings[0]


@compiles
def test_a_barrier_that_half_the_block_reaches_is_named_with_both_lines():
    result, _ = outcome("faults.cu", 2)
    assert result.code == 0 and "faults.cu:18" in result.findings[0] and "faults.cu:20" in result.findings[0]


@compiles
def test_an_assertion_stops_the_kernel_and_the_program_goes_on():
    result, out = outcome("faults.cu", 10)
    assert result.code == 0 and "`threadIdx.x < n' failed" in out and "assertion failed" in result.findings[0]


@compiles
def test_time_and_output_are_limited():
    assert "after 1 seconds in the host's code, before any kernel" in outcome("faults.cu", 5, seconds=1)[0].stopped
    result, out = outcome("faults.cu", 4)
    assert "16 MiB" in result.stopped and len(out) <= cuda_program.OUTPUT


@compiles
def test_it_ends_as_the_program_ends():
    assert outcome("faults.cu", 6)[0].code == 41
    assert outcome("faults.cu", 9)[1] == "2\n"  # cudaErrorMemoryAllocation


@compiles
def test_a_program_that_is_ended_says_where_it_was_and_what_it_had_printed(monkeypatch):
    lines = (FOLDER / "faults.cu").read_text(encoding="utf-8").splitlines()
    at = {case: next(n for n, line in enumerate(lines, 1) if f"case {case}: " in line) for case in (7, 11)}
    result, _ = outcome("faults.cu", 7)
    assert result.code == -11
    assert f"ended by SIGSEGV in the host's code at faults.cu:{at[7]}, before any kernel" in result.stopped
    result, out = outcome("faults.cu", 11)
    assert result.code == -6 and out == "printed before"
    place = f"faults.cu:{at[11]}"
    assert f"ended by SIGABRT in the host's code at {place}, after kernel inner of {place}" in result.stopped
    monkeypatch.setenv("SIMT_SECONDS", "30")
    result, _ = outcome("faults.cu", 1, seconds=0.4)
    assert result.code == -9
    assert "after 0.4 seconds in kernel spin of faults.cu" in result.stopped and "0 of its 1 blocks" in result.stopped


@compiles
def test_a_refused_launch_nobody_asked_about_is_found():
    result, _ = outcome("faults.cu", 8)
    assert result.code == 0 and "4096" in result.findings[0]


@compiles
def test_the_command_ends_with_3_for_what_is_not_supported(tmp_path, capfd):
    assert main(["simt", "run", "--schedule", "reverse", "--", str(FOLDER / "faults.cu"), "3", "-n"]) == 3
    assert "cudaDeviceSynchronize in a kernel" in capfd.readouterr().err
    source = tmp_path / "größe and space" / "ptx.cu"
    source.parent.mkdir()
    source.write_text('__global__ void k(int *x) {\n  asm volatile("brx.idx %0;" : "+r"(*x));\n}\n'
                      "int main() { k<<<1, 1>>>(nullptr); }\n")
    assert main(["simt", "run", str(source)]) == 3
    assert f"{source}:2: unsupported: inline PTX brx.idx" in capfd.readouterr().err


@pytest.mark.parametrize(("error", "says"), [
    ("a.cu:5:3: error: 'tex2DLod' was not declared in this scope",
     "a.cu:5: unsupported: this part of textures and surfaces (tex2DLod)"),
    ("a.cu:2:10: fatal error: thrust/sort.h: No such file or directory",
     "a.cu:2: unsupported: Thrust (thrust/sort.h)"),
    ("a.cu:7:1: error: 'cudaGraph_t' was not declared in this scope", "a.cu:7: unsupported: CUDA graphs (cudaGraph_t)"),
    ("a.cu:9:8: error: 'this_cluster' is not a member of 'cg'",
     "a.cu:9: unsupported: this part of cooperative groups (this_cluster)"),
    ("a.cu:9:8: error: '__pm0' was not declared in this scope; did you mean 'x'?",
     "a.cu:9: unsupported: this CUDA function or type (__pm0)"),
    ("a.cu:4:2: error: 'cudaMemcpy3DPeer' was not declared in this scope; did you mean 'cudaMemcpyPeer'?",
     "a.cu:4: unsupported: this CUDA function or type (cudaMemcpy3DPeer)"),
    ("b.h:79: undefined reference to `glClearColor'", "b.h:79: unsupported: OpenGL (glClearColor)"),
    ("a.cu:1:10: fatal error: GL/glut.h: No such file or directory", "a.cu:1: unsupported: OpenGL (GL/glut.h)"),
    ("a.cu:4:2: error: 'cuGetErrorName' was not declared in this scope; did you mean 'cudaGetErrorName'?",
     "a.cu:4: unsupported: this CUDA function or type (cuGetErrorName)"),
    ("a.cu:4:2: error: there are no arguments to '__pm0' that depend on a template parameter, so a declaration",
     "a.cu:4: unsupported: this CUDA function or type (__pm0)"),
    ("a.cu:6:2: error: 'cub::DeviceScan' has not been declared", "a.cu:6: unsupported: CUB (cub::DeviceScan)"),
    ("a.cu:6:2: error: 'DeviceReduce' is not a member of 'cub'", "a.cu:6: unsupported: CUB (DeviceReduce)"),
])
def test_an_undeclared_name_of_cuda_is_named_as_unsupported(error, says):
    explained = cuda_program._first_error(f"In file included from x:\n{error}\n  more\n")
    assert isinstance(explained, Unsupported) and str(explained) == says


def test_another_error_is_the_compilers_first_line():
    explained = cuda_program._first_error("a.cu: In function 'int main()':\na.cu:3:5: error: 'foo' was not declared\n")
    assert type(explained) is ValueError and str(explained) == "a.cu:3:5: error: 'foo' was not declared"


@compiles
def test_a_mistake_is_shown_in_the_readers_own_file(tmp_path, capsys):
    (tmp_path / "more.h").write_text("#pragma once\n__global__ void k() {}\nint twice(int x) { return 2 * y; }\n")
    (tmp_path / "a.cu").write_text('#include "more.h"\nint main() { k<<<1, 1>>>(); }\n')
    assert main(["simt", "run", str(tmp_path / "a.cu")]) == 2
    assert f"{tmp_path / 'more.h'}:3:" in capsys.readouterr().err


@compiles
def test_a_launch_that_never_closes_is_shown_in_its_file(tmp_path):
    (tmp_path / "part.h").write_text("\nvoid f() { k<<<1, 2(x); }\n")
    (tmp_path / "a.cu").write_text('#include "part.h"\nint main() {}\n')
    with pytest.raises(ValueError, match=r"part.h:2: <<< without its >>>"):
        build(tmp_path / "a.cu")


@compiles
def test_a_slip_of_the_pen_is_the_compilers_error_and_not_called_unsupported(tmp_path):
    (tmp_path / "a.cu").write_text("int main() {\n  float *x;\n  cudaMaloc(&x, 4);\n}\n")
    with pytest.raises(ValueError, match=r"a.cu:3:3: error: .cudaMaloc. was not declared"):
        build(tmp_path / "a.cu")
    (tmp_path / "a.cu").write_text("int main() {\n  return make_widget() + CUBE + atomically();\n}\n")
    with pytest.raises(ValueError, match=r"a.cu:2:10: error: .make_widget. was not declared"):
        build(tmp_path / "a.cu")


@compiles
def test_a_program_may_have_several_sources_that_ask_for_openmp_and_for_this(tmp_path):
    (tmp_path / "host.cpp").write_text('#include "omp.h"\nvoid launch(int *x);\n'
                                       "struct S { bool none() { return !this; } };\n"
                                       "int main(int n, char **) {\n  S *s = n > 5 ? new S : 0;\n"
                                       "  int x = omp_in_parallel();\n  if (s->none()) launch(&x);\n  return x;\n}\n")
    (tmp_path / "k.cu").write_text("#include <cuda_gl_interop.h>\n__global__ void k(int *x) { *x = 17; }\n"
                                   "void launch(int *x) { k<<<1, 1>>>(x); }\n")
    assert run(build(tmp_path / "host.cpp", others=[tmp_path / "k.cu"])).code == 17


def test_bad_flags_are_one_sentence(tmp_path, capsys):
    assert main(["simt", "run", "absent.cu"]) == 2 and "absent.cu" in capsys.readouterr().err
    assert main(["simt", "run", "absent.cu", "--schedule", "sideways"]) == 2
    assert "forward, reverse or shuffle:N" in capsys.readouterr().err


@compiles
@pytest.mark.long
def test_the_profiler_finds_the_race_with_both_lines(capfd):
    assert main(["simt", "run", str(FOLDER / "faults.cu"), "--profile"]) != 0
    err = capfd.readouterr().err
    assert " faults.cu:9" in err and " faults.cu:8" in err and "no barrier between" in err


BROKEN = dict(sorted((int(case), (kind, line)) for line, text in enumerate(
    (FOLDER / "broken.cu").read_text(encoding="utf-8").splitlines(), 1)
    for kind, case in re.findall(r"// (\w[\w ]*): (\d+)$", text)))


@compiles
@pytest.mark.long
@pytest.mark.parametrize("case", BROKEN)
def test_each_mistake_with_groups_copies_and_surfaces_is_named_with_its_line_under_every_schedule(case):
    kind, line = BROKEN[case]
    program = build(FOLDER / "broken.cu", profiled=True)
    for schedule in ("forward", "reverse", "shuffle:5"):
        found = json.loads(run(program, [str(case)], schedule=schedule).profile)["findings"]
        kinds = {one["kind"] for one in found} - ({"uninitialised"} if kind == "race" else set())
        lines = {int(place.rsplit(":", 1)[1]) for one in found for place in (one["place"], one["other"]) if place}
        assert kinds == {kind} and (line in lines or kind == "barrier" and line - 1 in lines), (schedule, found)


@compiles
@pytest.mark.long
@pytest.mark.parametrize("name", ["basics", "groups", "instructions"])
def test_the_profiler_accuses_no_sound_program(name, capfd):
    assert main(["simt", "run", "--schedule", "shuffle:2", "--profile", "--", str(FOLDER / f"{name}.cu")]) == 0
    assert "nothing found wrong" in capfd.readouterr().err
