"""The table of `kernels verify`: every kernel within its bound on every backend, and a wrong kernel without."""

import pytest
import torch
from mutants import Mutant

from minillama import kernels, kernels_verify
from minillama.cli import main

needs_simt = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_simt),
                                     pytest.param("simt", marks=needs_simt)])
def test_every_kernel_is_within_its_bounds(backend):
    rows = list(kernels_verify.verify([backend]))
    assert not [row for row in rows if not row.ok]
    operators = [name for name, backends in kernels.KERNELS.items() if backend in (*backends, "reference")]
    assert {(row.operator, row.dtype) for row in rows} == {(o, d) for o in operators for d in kernels_verify.DTYPES}


@needs_simt
@pytest.mark.parametrize("order", ["reverse", "shuffle:1"])
def test_a_hostile_schedule_changes_no_bit(order):
    """Sums are formed in a fixed order by fixed threads, so that the order of the threads cannot show."""
    for operator, cases in kernels_verify.CASES.items():
        for shape, inputs, run in cases(torch.float32):
            forward = kernels_verify.results(run, "simt", inputs)
            with kernels.schedule(order):
                hostile = kernels_verify.results(run, "simt", inputs)
            assert all(torch.equal(forward[name], hostile[name]) for name in forward), (operator, shape)


def test_a_wrong_result_is_called_wrong():
    row = kernels_verify.Row("rope", "simt", torch.float32, "", "out", 2e-6, 1e-6)
    assert not row.ok
    assert not kernels_verify.Row("rope", "simt", torch.float32, "", "out", float("nan"), 1e-6).ok


def test_the_command_prints_the_table_and_its_verdict(capsys, monkeypatch):
    assert main(["kernels", "verify", "--backend", "reference", "--op", "rope"]) == 0
    out = capsys.readouterr().out
    assert "18 of 18 within their bounds" in out and "nf4" not in out and "WRONG" not in out
    monkeypatch.setitem(kernels_verify.FACTORS, False, 0)
    monkeypatch.setattr(kernels_verify.Row, "ok", property(lambda row: row.error == 0))
    assert main(["kernels", "verify", "--backend", "reference", "--op", "rope"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_an_unknown_operator_or_backend_is_refused():
    with pytest.raises(ValueError, match="'rpoe' is not known: choose from rope"):
        next(kernels_verify.verify(operators=["rpoe"]))
    with pytest.raises(ValueError, match="'tpu' is not known"):
        next(kernels_verify.verify(["tpu"]))


def within_bounds(backend, operator):
    assert all(row.ok for row in kernels_verify.verify([backend], [operator]))


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "gradient, *ctx.saved_tensors, ctx.in_features", "-gradient, *ctx.saved_tensors, "
           "ctx.in_features", lambda: within_bounds("simt", "nf4_matmul")),
    Mutant("minillama.kernels", "d_lse, *ctx.saved_tensors, ctx.causal", "d_lse, *ctx.saved_tensors, True",
           lambda: within_bounds("simt", "flash_attention")),
    Mutant("minillama.kernels", "table, None, 0, interleaved, False)[0]", "table, None, 0, True, False)[0]",
           lambda: within_bounds("simt", "rope")),
    Mutant("minillama.kernels_verify", "self.error <= self.allowed", "not self.error > self.allowed",
           test_a_wrong_result_is_called_wrong),
]
