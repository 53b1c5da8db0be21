"""CUDA programs with their own main() are built without nvcc, run, and end as they should.

Programs: tests/simt/programs; basics.cu checks itself, faults.cu goes wrong in a way that its argument chooses.
"""

import shutil
import sys
from pathlib import Path

import pytest
from mutants import Mutant

from minillama import cuda_program
from minillama.cli import main
from minillama.cuda_program import Unsupported, build, masked, run, translate

FOLDER = Path(__file__).resolve().parent / "simt" / "programs"
compiles = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                              reason="programs are compiled on the spot by g++, on Linux")


def outcome(name, *arguments, **settings):
    """(result, output) of a program, built if need be."""
    out = []
    result = run(build(FOLDER / name), [str(a) for a in arguments], write=out.append, **settings)
    return result, b"".join(out).decode()


def body(text):
    """The translation without its first line, which names the file."""
    return translate(text, "k.cu").split("\n", 1)[1]


# ---- source to source

@pytest.mark.parametrize(("source", "kernel", "config", "arguments"), [
    ("add<<<1, 2>>>(a, b);", "add", "1, 2", "(a, b);"),
    ("add <<< g, b >>> (a);", "add ", " g, b ", " (a);"),
    ("mm<16, float><<<dim3(1, 2), f(3), s, 0>>>(a);", "mm<16, float>", "dim3(1, 2), f(3), s, 0", "(a);"),
    ("mm<(N > 1), v<int>><<<1, (a >> b)>>>(a);", "mm<(N > 1), v<int>>", "1, (a >> b)", "(a);"),
    ("if (x) ns::k<3><<<1, 1>>>();", "ns::k<3>", "1, 1", "();"),
    ("x = 1; ::k<<<1, 1>>>();", "::k", "1, 1", "();"),
    ("else (*f)<<<1, 1>>>(x);", "(*f)", "1, 1", "(x);"),
    ("a > b; t[i]<<<1, 1>>>(x);", "t[i]", "1, 1", "(x);"),
    ("{s->k[0]<<<1, 1>>>(NULL, f(NULL));}", "s->k[0]", "1, 1", "(nullptr, f(nullptr));}"),
    ("k<<<1,\n  1,\n sizeof(int) * 2>>>(a,\n b);", "k", "1,\n  1,\n sizeof(int) * 2", "(a,\n b);"),
])
def test_a_launch_becomes_two_calls(source, kernel, config, arguments):
    before = source[: source.index(kernel)]
    assert body(source) == f"{before}SIMT_KERNEL({kernel})({config}){arguments}"


@pytest.mark.parametrize("source", ['"k<<<1, 2>>>(x)"', "// k<<<1, 2>>>(x)", "/* k<<<1,\n 2>>>(x) */", "'<'", "a << b",
                                    'R"(asm("x") k<<<1, 2>>>(x))"', "// asm(\"x\") \\\n k<<<1, 2>>>()",
                                    "extern float x[];", "extern int f();", "asm_(1)"])
def test_what_is_no_cuda_stays_as_it_is(source):
    assert body(source) == source


def test_dynamic_shared_memory_is_a_pointer_inside_a_kernel_and_an_object_outside():
    inside = body('extern "C" { void f() { extern __shared__ __align__(8 * (1)) volatile float s[]; } }')
    assert "volatile float (*s) = static_cast<volatile float (*)>(::simt::dynamic_shared());" in inside
    rows = body("void f() { extern __shared__ half s[][8 + 1][2]; }")
    assert "half (*s)[8 + 1][2] = static_cast<half (*)[8 + 1][2]>(::simt::dynamic_shared());" in rows
    outside = body('namespace a { extern "C" { extern __shared__ float s[]; } }')
    assert "static const ::simt::program::DynamicShared<float> s;" in outside


def test_every_line_keeps_its_number():
    text = (FOLDER / "basics.cu").read_text(encoding="utf-8")
    text += 'asm volatile("mov.u32 %0,\n %1;"\n : "=r"(x) : "r"(y));\nextern __shared__\n float\n s[];\n'
    before, after = text.splitlines(), body(text).splitlines()
    assert len(before) == len(after) and before[-4][:3] != after[-4][:3]
    plain = ("//", "#", "static", "  CHECK")
    assert all(old == new for old, new in zip(before, after, strict=True) if old.startswith(plain))


def test_masking_keeps_every_place():
    text = "a = '\"'; /* \" */ b = \"/* \\\" */\"; c = 1'000; // '\nd"
    assert masked(text).split() == ["a", "=", ";", "b", "=", ";", "c", "=", "1'000;", "d"]
    assert len(masked(text)) == len(text) and masked(text).index("\n") == text.index("\n")


@pytest.mark.parametrize("source", ["k<<<1, 2(x);", "k<<<1, (2>>>(x);"])
def test_a_launch_that_never_closes_is_an_error_with_its_line(source):
    with pytest.raises(ValueError, match="line 2"):
        body("\n" + source)


# ---- whole programs

@compiles
def test_a_program_that_was_written_for_a_gpu_passes_its_own_checks():
    for schedule in ("forward", "reverse", "shuffle:3"):
        result, out = outcome("basics.cu", "one", schedule=schedule)
        assert result.code == 0 and not result.findings and "0 wrong, 1 argument(s)" in out, out


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
    assert "after 1 seconds" in outcome("faults.cu", 5, seconds=1)[0].stopped
    result, out = outcome("faults.cu", 4)
    assert "16 MiB" in result.stopped and len(out) <= cuda_program.OUTPUT


@compiles
def test_it_ends_as_the_program_ends():
    assert outcome("faults.cu", 6)[0].code == 41
    assert "SIGSEGV" in outcome("faults.cu", 7)[0].stopped
    assert outcome("faults.cu", 9)[1] == "2\n"  # cudaErrorMemoryAllocation


@compiles
def test_a_refused_launch_nobody_asked_about_is_found():
    result, _ = outcome("faults.cu", 8)
    assert result.code == 0 and "4096" in result.findings[0]


@compiles
def test_the_command_ends_with_3_for_what_is_not_supported(tmp_path, capfd):
    assert main(["simt", "run", "--schedule", "reverse", "--", str(FOLDER / "faults.cu"), "3", "-n"]) == 3
    assert "dynamic parallelism" in capfd.readouterr().err
    source = tmp_path / "größe and space" / "ptx.cu"
    source.parent.mkdir()
    source.write_text('__global__ void k(int *x) {\n  asm volatile("bfind.u32 %0, %0;" : "+r"(*x));\n}\n'
                      "int main() { k<<<1, 1>>>(nullptr); }\n")
    assert main(["simt", "run", str(source)]) == 3
    assert f"{source}:2: unsupported: inline PTX bfind.u32" in capfd.readouterr().err


@pytest.mark.parametrize(("error", "says"), [
    ("a.cu:5:3: error: 'tex2D' was not declared in this scope", "a.cu:5: unsupported: textures and surfaces (tex2D)"),
    ("a.cu:2:10: fatal error: thrust/sort.h: No such file or directory",
     "a.cu:2: unsupported: Thrust (thrust/sort.h)"),
    ("a.cu:7:1: error: 'cudaGraph_t' was not declared in this scope", "a.cu:7: unsupported: CUDA graphs (cudaGraph_t)"),
    ("a.cu:9:8: error: 'this_grid' is not a member of 'cg'",
     "a.cu:9: unsupported: this part of cooperative groups (this_grid)"),
    ("a.cu:9:8: error: '__vadd4' was not declared in this scope; did you mean 'x'?",
     "a.cu:9: unsupported: this CUDA function or type (__vadd4)"),
])
def test_an_undeclared_name_of_cuda_is_named_as_unsupported(error, says):
    explained = cuda_program._explained(f"In file included from x:\n{error}\n  more\n")
    assert isinstance(explained, Unsupported) and str(explained) == says


def test_another_error_is_the_compilers_first_line():
    explained = cuda_program._explained("a.cu: In function 'int main()':\na.cu:3:5: error: 'foo' was not declared\n")
    assert type(explained) is ValueError and str(explained) == "a.cu:3:5: error: 'foo' was not declared"


@compiles
def test_a_mistake_is_shown_in_the_readers_own_file(tmp_path, capsys):
    (tmp_path / "more.h").write_text("#pragma once\n__global__ void k() {}\nint twice(int x) { return 2 * y; }\n")
    (tmp_path / "a.cu").write_text('#include "more.h"\nint main() { k<<<1, 1>>>(); }\n')
    assert main(["simt", "run", str(tmp_path / "a.cu")]) == 2
    assert f"{tmp_path / 'more.h'}:3:" in capsys.readouterr().err


@compiles
def test_a_program_may_have_several_sources(tmp_path):
    (tmp_path / "host.cpp").write_text("void launch(int *x);\nint main() { int x = 0; launch(&x); return x; }\n")
    (tmp_path / "k.cu").write_text("__global__ void k(int *x) { *x = 17; }\n"
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


@compiles
@pytest.mark.long
def test_the_profiler_accuses_no_sound_program(capfd):
    assert main(["simt", "run", str(FOLDER / "basics.cu"), "--profile"]) == 0
    assert "nothing found wrong" in capfd.readouterr().err


MUTANTS = [
    Mutant("minillama.cuda_program", '(place, 3, ")")', '(place, 2, ")")',
           lambda: test_a_launch_becomes_two_calls("k<<<1, 2>>>(a);", "k", "1, 2", "(a);")),
    Mutant("minillama.cuda_program", 'opened in ([], ["<"] * len(opened))', "True",
           lambda: test_a_launch_becomes_two_calls("m<(N > 1)><<<1, 2>>>(a);", "m<(N > 1)>", "1, 2", "(a);")),
    Mutant("minillama.cuda_program", r"""|"(?:\\.|[^"\\\n])*"'""", "'",
           lambda: test_what_is_no_cuda_stays_as_it_is('"k<<<1, 2>>>(x)"')),
    Mutant("minillama.cuda_program", 'source.count("\\n") * "\\n"', '""', test_every_line_keeps_its_number),
]
