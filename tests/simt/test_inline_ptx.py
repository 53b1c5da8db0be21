"""Inline PTX means what the manual says, and what is not known is refused by its name.

tests/simt/programs/instructions.cu holds each instruction beside the same in plain C++.
"""

import shutil
import sys
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.simt.cuda_program import Unsupported, build, run
from minillama.simt.inline_ptx import UnsupportedPtx, split, translate_asm

PROGRAM = Path(__file__).resolve().parent / "programs" / "instructions.cu"
compiles = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                              reason="programs are compiled on the spot by g++, on Linux")


def asm(text):
    return translate_asm(text, "0")


@compiles
@pytest.mark.parametrize("schedule", ["forward", "reverse"])
def test_each_instruction_agrees_with_plain_cpp(schedule):
    out = []
    result = run(build(PROGRAM), schedule=schedule, write=out.append)
    assert result.code == 0 and not result.findings and b"0 wrong, 0 wrong products" in b"".join(out), (out, result)


@pytest.mark.parametrize("instruction", [
    "wgmma.fence.sync.aligned;", "tex.2d.v4.f32.f32 {%0, %0, %0, %0}, [%1, {%1, %1}];", "bra done;", "done: exit;",
    "add.rz.f32 %0, %0, %1;", "add.sat.s32 %0, %0, %1;", "add.cc.u32 %0, %0, %1;", "cvt.rz.f16.f32 %0, %1;",
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0}, {%1}, {%1}, {%0};",
    "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {%0,%0,%0,%0}, {%1,%1,%1,%1}, {%1,%1}, {%0,%0,%0,%0};",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%0}, {%1,%1,%1,%1}, {%1,%1}, {%0,%0,%0,%0};",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %0}, [%1];", "ldmatrix.sync.aligned.m16n16.x1.shared.b8 {%0}, [%1];",
    "cp.async.bulk.commit_group;", "bar.sync 1, 64;", "prmt.b32.f4e %0, %0, %0, %1;", "mov.u32 %0, %%envreg3;",
    "mov.u32 %0, %7;", "ld.shared::cluster.u32 %0, [%1];", "shfl.down.b32 %0, %0, 1, 31;",
    "vadd4.u32.u32.u32 %0, %0, %1, %1;",
    ".reg .b128 wide;", "add.u32 %0, undeclared, %1;",
])
def test_what_is_not_known_is_refused_by_name(instruction):
    name = instruction.split()[0].strip(";:")
    with pytest.raises(UnsupportedPtx, match=name.replace(".", "[.]")):
        asm(f'"{instruction}" : "+r"(a) : "r"(b)')


def test_text_that_macros_put_together_is_refused():
    with pytest.raises(UnsupportedPtx, match="macros"):
        asm('"mov.u32 %0, " #reg ";" : "=r"(a)')
    with pytest.raises(UnsupportedPtx, match="operand"):
        asm('"mov.u32 %[out], %1;" : [out] "=r"(a) : "r"(b)')


def test_comments_scopes_and_several_lines_are_read():
    text = asm('"{ // first\\n\\t"\n  " .reg .pred p<2>;\\n"\n "setp.ne.b32 p1, %1, 0; /* then */ "\n'
               '"@!p1 mov.b32 %0, 0x1F; }" : "=r"(x[0]) : "r"(f(a, b)) : "memory"')
    assert "simt::ptx::in<uint32_t>(f(a, b))" in text and "simt::ptx::out(x[0], simt_0_0)" in text
    assert "bool simt_0_p1_1 = {};" in text and "if (!simt_0_p1_1) { simt::ptx::set(simt_0_0" in text


def test_brackets_and_strings_hold_together():
    assert split('a(b, c), "d, e", {f, g}', ",") == ["a(b, c)", ' "d, e"', " {f, g}"]
    assert split('"x" : "=r"(a::b) :: "memory"', ":") == ['"x" ', ' "=r"(a::b) ', "", ' "memory"']


@compiles
def test_an_unknown_instruction_is_named_with_its_line_where_it_is_used(tmp_path):
    unused = '__device__ void never() { asm("bra somewhere;"); }\n'
    (tmp_path / "fine.cu").write_text("template <int> " + unused + "int main() { return 7; }\n")
    assert run(build(tmp_path / "fine.cu")).code == 7
    (tmp_path / "not.cu").write_text(unused + "__global__ void k() { never(); }\nint main() { k<<<1, 1>>>(); }\n")
    with pytest.raises(Unsupported, match=r"not.cu:1: unsupported: inline PTX bra"):
        build(tmp_path / "not.cu")


MUTANTS = [
    Mutant("minillama.simt.ptx_instructions", 'if mods[-1] not in TYPES or any(m not in allowed for m in mods[:-1]):',
           "if mods[-1] not in TYPES:", lambda: test_what_is_not_known_is_refused_by_name("add.rz.f32 %0, %0, %1;")),
    Mutant("minillama.simt.ptx_instructions", "if sizes != [", "if 0 and sizes != [",
           lambda: test_what_is_not_known_is_refused_by_name(
               "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%0}, {%1,%1,%1,%1}, {%1,%1}, {%0,%0,%0,%0};")),
    Mutant("minillama.simt.inline_ptx", 'letter == mark and depth == 0', "letter == mark",
           test_brackets_and_strings_hold_together),
]
