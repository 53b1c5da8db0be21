"""The table of `kernels verify`: every kernel within its bound on every backend, and a wrong kernel without."""

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.cli.command_line import main
from minillama.parity import kernels_verify

needs_simt = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_simt),
                                     pytest.param("simt", marks=needs_simt)])
def test_every_kernel_is_within_its_bounds(backend):
    rows = list(kernels_verify.verify([backend]))
    assert not [row for row in rows if not row.ok]
    operators = [name for name in kernels_verify.CASES if backend in (*kernels.KERNELS[name], "reference")]
    assert {(row.operator, row.dtype) for row in rows} == {(o, d) for o in operators for d in kernels_verify.DTYPES}


@needs_simt
@pytest.mark.parametrize("order", ["reverse", "shuffle:1"])
def test_a_hostile_schedule_changes_no_bit(order):
    """Sums are formed in a fixed order by fixed threads, so that the order of the threads cannot show."""
    for operator, cases in kernels_verify.CASES.items():
        for shape, inputs, run, _ in cases(torch.float32):
            forward = kernels_verify.results(run, "simt", inputs)
            with kernels.schedule(order):
                hostile = kernels_verify.results(run, "simt", inputs)
            assert all(torch.equal(forward[name], hostile[name]) for name in forward), (operator, shape)


def test_a_wrong_result_is_called_wrong():
    row = kernels_verify.Row("rope", "simt", torch.float32, "", "out", 2e-6, 1e-6)
    assert not row.ok
    assert not kernels_verify.Row("rope", "simt", torch.float32, "", "out", float("nan"), 1e-6).ok
    assert kernels_verify.Row("rope", "simt", torch.float32, "", "out", 0.0, 0.0).ok


def test_a_gpu_that_is_not_there_is_passed_over_unless_it_was_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "built_backends", lambda: ("reference", "simt", "cuda"))
    monkeypatch.setattr(kernels, "require", lambda backend: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels_verify, "why_not_fused", lambda: "it is not looked for")
    monkeypatch.setattr(kernels_verify, "rows_of", lambda operator, backend, dtype, thorough: [
        kernels_verify.Row(operator, backend, dtype, "", "out", float(backend == "simt"), 0.5)])
    found = [(row.operator, row.backend, row.dtype) for row in kernels_verify.verify()]
    assert found == [(operator, backend, dtype) for operator in kernels_verify.CASES
                     for backend in ("reference", "simt") for dtype in kernels_verify.DTYPES]
    with pytest.raises(RuntimeError, match="'cuda' is built here, but there is no GPU"):
        list(kernels_verify.verify(["cuda"]))
    assert kernels_verify.print_table() is False and kernels_verify.print_table(["reference"]) is True
    lines = capsys.readouterr().out.splitlines()
    ends = [line.split(" in ")[0] for line in lines if " within their bounds" in line]
    assert ends == ["9 of 18 within their bounds", "9 of 9 within their bounds"]
    assert all(line.endswith("no GPU here to run cuda on") for line in lines if " within their bounds" in line)
    assert [sum(line.endswith(f"| {word} |") for line in lines) for word in ("WRONG", "ok")] == [9, 18]


def test_the_command_prints_the_table_and_its_verdict(capsys, monkeypatch):
    assert main(["kernels", "verify", "--backend", "reference", "--op", "rope"]) == 0
    out = capsys.readouterr().out
    assert "24 of 24 within their bounds" in out and "nf4" not in out and "WRONG" not in out
    table = [line for line in out.splitlines() if line.startswith("|")]  # Markdown, to be pasted
    assert len(table) == 2 + 3 and len({line.count("|") for line in table}) == 1 and set(table[1]) == {"|", "-"}
    monkeypatch.setattr(kernels_verify.Row, "ok", property(lambda row: row.error == 0))
    assert main(["kernels", "verify", "--backend", "reference", "--op", "rope"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_an_unknown_operator_or_backend_is_refused():
    with pytest.raises(ValueError, match="'rpoe' is not known: choose from rope"):
        next(kernels_verify.verify(operators=["rpoe"]))
    with pytest.raises(ValueError, match="'tpu' is not known"):
        next(kernels_verify.verify(["tpu"]))


def test_the_callers_default_device_is_its_own_while_rows_are_read_and_after():
    """A table that is read half must leave nothing behind: what is made next would be made on its device."""
    with torch.device("meta"):
        rows = kernels_verify.verify(["reference"], ["rope"])
        next(rows)
        assert torch.empty(1).device.type == "meta"
    assert torch.empty(1).device.type == "cpu"
    rows.close()
    assert torch.empty(1).device.type == "cpu"


def bounds(operator, dtype, shape, backend="reference"):
    """The bounds of one case."""
    _, inputs, run, truth = next(case for case in kernels_verify.CASES[operator](dtype) if case[0] == shape)
    d_out = kernels_verify.direction_like(run("reference", *inputs.values()))
    return {name: found.stored(dtype) for name, found in truth(inputs, d_out, backend == "reference").items()}


@pytest.mark.parametrize("dtype", kernels_verify.DTYPES)
def test_the_bounds_are_a_small_share_of_the_results(dtype):
    """In fp32 as far as errors of scores are passed on at their worst, which few bits of the inputs reduce; a few units
    in the last place in half precision, of which tensor cores, that multiply weights and the gradients of scores in 16
    bits, take two: no fault that is more than rounding hides below them."""
    for operator, shape, most in (("rope", "B=1 T=33 H=5 d=64 interleaved", 2e-7),
                                  ("nf4_matmul", "M=9 N=136 K=192 single", 4e-5),
                                  ("flash_attention", "B=1 H=2 K=1 T=5 S=37 d=80 causal", 4e-4),
                                  ("flash_attention", "B=1 H=2 K=2 T=16 S=33 d=64", 1.5e-4)):
        torch.manual_seed(0)
        for name, found in bounds(operator, dtype, shape, "simt").items():
            size = found.value.square().mean().sqrt()
            share = (found.error.square().mean().sqrt() / size).item()
            assert share < (most if dtype == torch.float32 else 7 * torch.finfo(dtype).eps), (operator, name, share)


def within_bounds(backend, operator):
    assert all(row.ok for row in kernels_verify.verify([backend], [operator]))


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "gradient, *ctx.saved_tensors, ctx.in_features", "-gradient, *ctx.saved_tensors, "
           "ctx.in_features", lambda: within_bounds("simt", "nf4_matmul")),
    Mutant("minillama.kernels", "d_lse, *tensors, ctx.causal", "d_lse, *tensors, True",
           lambda: within_bounds("simt", "flash_attention")),
    Mutant("minillama.kernels", "table, None, 0, interleaved, False)[0]", "table, None, 0, True, False)[0]",
           lambda: within_bounds("simt", "rope")),
    Mutant("minillama.parity.kernels_verify", "self.error <= self.allowed", "not self.error > self.allowed",
           test_a_wrong_result_is_called_wrong),
]
