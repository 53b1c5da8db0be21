"""a * b + c in device code is one operation, as nvcc makes it, or with --fmad=false two; host code has two either way.

tests/simt/programs/contraction.cu prints a * b + c where that is 2^-24 (2^-54 as a double) with one rounding and 0 with
two.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_attention_kernel as attention_laws
import torch
from mutants import Mutant
from test_cuda_program import compiles

from cuda_build import nvcc
from minillama import kernels
from minillama.cli.command_line import main
from minillama.parity import kernels_verify
from minillama.simt import compiler
from minillama.simt.compiler import NotBuilt, contraction

SOURCE = Path(__file__).resolve().parent / "programs" / "contraction.cu"
FUSES = sys.platform == "linux" and " fma " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
compiles_fused = pytest.mark.skipif(not FUSES, reason="no Linux, or the CPU has no fused multiply-add")
needs_simt = pytest.mark.skipif("simt" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
ONE, WIDE = 2.0**-24, 2.0**-54


def printed(capfd, *flags):
    """{kernel: [numbers]} of the program."""
    assert main(["simt", "run", *flags, str(SOURCE)]) == 0
    lines = capfd.readouterr().out.splitlines()
    return {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines}


@compiles
@compiles_fused
def test_a_product_and_its_sum_are_one_operation_in_kernels_and_two_where_a_rounding_is_named_and_on_the_host(capfd):
    found = printed(capfd)
    assert found["fused"] == pytest.approx([ONE] * 6 + [-ONE, ONE], rel=1e-5)
    assert found["wide"] == pytest.approx([WIDE, 0, 0, 0], rel=1e-5)
    assert found["named"] == [0] * 5 and found["host"] == [0] * 2


@compiles
def test_without_fmad_every_product_is_rounded(capfd):
    assert printed(capfd, "--fmad=false") == {"fused": [0] * 8, "named": [0] * 5, "wide": [0] * 4, "host": [0] * 2}


@pytest.mark.long
def test_nvcc_fuses_where_the_emulator_does():
    """In the PTX of the three kernels; the product of inline PTX is fused later, by ptxas, which its rules allow."""
    if not nvcc():
        pytest.skip("nvcc is not installed here: `pip install minillama[cuda]` brings it, no GPU is needed")
    command = [nvcc(), "-arch=sm_80", "-ptx", "-o", "-", str(SOURCE)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels_of = {re.match(r"_Z\d+([a-z]+)P", part)[1]: part for part in text.split(".visible .entry ")[1:]}
    assert {name: len(re.findall(r"\bfma\.rn\.f(?:32|64)\b", part)) for name, part in kernels_of.items()} == {
        "fused": 7, "named": 0, "wide": 1}
    assert len(re.findall(r"\bmul\.f32\b", kernels_of["fused"])) == 1


def test_a_processor_without_the_operation_is_told_the_flag(monkeypatch):
    monkeypatch.setattr(compiler.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compiler.Path, "read_text", lambda path, **how: "flags : fpu sse2 fma4 avx\n")
    with pytest.raises(NotBuilt, match="this CPU cannot compute .* in one operation.*--fmad=false"):
        contraction(True)
    assert contraction(False) == []
    monkeypatch.setattr(compiler.Path, "read_text", lambda path, **how: "flags : fpu fma avx\n")
    assert contraction(True) == ["-DSIMT_CONTRACT", "-mfma"]
    monkeypatch.setattr(compiler.platform, "machine", lambda: "aarch64")
    assert contraction(True) == ["-DSIMT_CONTRACT"], "arm64 always has it"


@compiles
@compiles_fused
@needs_simt
@pytest.mark.long
def test_every_kernel_is_within_its_bounds_with_products_and_sums_fused():
    rows = list(kernels_verify.verify([kernels_verify.FUSED]))
    assert len(rows) > 100 and not [row for row in rows if not row.ok]
    plain = list(kernels_verify.verify(["simt"], ["rope"]))
    assert [row.error for row in rows if row.operator == "rope"] != [row.error for row in plain], "it is another form"


@compiles
@compiles_fused
@needs_simt
@pytest.mark.long
@pytest.mark.parametrize("d", [1, 12, 16, 80])
def test_attention_keeps_its_laws_with_products_and_sums_fused(d):
    with kernels.contracted():
        attention_laws.test_scores_far_from_zero_neither_overflow_nor_vanish(d)
        for dtype in attention_laws.DTYPES:
            attention_laws.test_every_width_and_dtype_keeps_the_tolerance_law(d, dtype)


@compiles
@compiles_fused
@needs_simt
@pytest.mark.long
def test_the_fused_form_is_in_use_within_its_block_alone():
    x = torch.randn(1, 5, 2, 64)
    rotations = torch.polar(torch.ones(5, 32), torch.randn(5, 32))
    plain = kernels.fused_rope(x, rotations, backend="simt")
    with kernels.contracted():
        fused = kernels.fused_rope(x, rotations, backend="simt")
        with kernels.contracted():
            assert torch.equal(kernels.fused_rope(x, rotations, backend="simt"), fused)
        assert torch.equal(kernels.fused_rope(x, rotations, backend="simt"), fused)
    assert torch.equal(kernels.fused_rope(x, rotations, backend="simt"), plain) and not torch.equal(plain, fused)


def _told_the_flag():
    with pytest.MonkeyPatch.context() as monkeypatch:
        test_a_processor_without_the_operation_is_told_the_flag(monkeypatch)


MUTANTS = [Mutant("minillama.simt.compiler", '" fma " not in', '" fma4 " not in', _told_the_flag)]
