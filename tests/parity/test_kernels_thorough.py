"""`kernels verify --thorough`: every kernel is right at the edges too, on every backend that is here, a GPU included.

tests/test_kernels_planted.py plants faults in the C++ that show there alone.
"""

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.parity import kernels_thorough
from minillama.parity.kernels_verify import CASES, DTYPES, FUSED, results, rows_of, why_not_fused

needs_simt = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
BACKENDS = ("reference", "cpu", "simt", FUSED, "cuda")


@needs_simt
@pytest.mark.parametrize(("operator", "dtype"), [("rope", torch.bfloat16), ("nf4_matmul", torch.float16)])
def test_all_cases_and_laws_hold_on_the_emulator(operator, dtype):
    rows, few = rows_of(operator, "simt", dtype, True), rows_of(operator, "simt", dtype)
    assert not [row for row in rows if not row.ok]
    assert len(rows) > 5 * len(few) and any(row.allowed == 0 for row in rows)
    assert {row.shape for row in rows} > {row.shape for row in few}


@needs_simt
@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_cases_and_laws_hold_everywhere(backend, operator, dtype):
    if backend == FUSED and why_not_fused():
        pytest.skip(why_not_fused())
    if backend == "cuda" and not ("cuda" in kernels.built_backends() and torch.cuda.is_available()):
        pytest.skip("there is no GPU here, or the kernels are not built for one")
    assert not [row for row in rows_of(operator, backend, dtype, True) if not row.ok]


def twice(backend, x):
    """2 x; but "flaky" gives other bits each time, "hides" no NaN, "spreads" it to all."""
    x = x * 2 if backend != "flaky" else x * float(torch.rand(()))
    return x.nan_to_num() if backend == "hides" else x + 0 * x.sum() if backend == "spreads" else x


@pytest.mark.parametrize(("backend", "broken"), [("reference", set()), ("flaky", {"same bits each time"}),
                                                 ("hides", {"out"}), ("spreads", {"out"})])
def test_what_breaks_a_law_is_named(backend, broken):
    found = {law.split(" seen in ")[-1].split(",")[0]
             for law, count in kernels_thorough.laws(backend, {"x": torch.randn(3, 4)}, twice, results) if count}
    assert found == broken


def test_places_keep_the_numbers_and_change_where_they_lie():
    x = torch.randn(2, 3, 5, 8)
    for _, inputs, _, _ in kernels_thorough.with_places([("", {"x": x}, None, None)], True):
        assert torch.equal(inputs["x"], x)
    assert kernels_thorough.not_aligned(x).data_ptr() % 16 and kernels_thorough.between_nan(x).stride(-2) == 16
    around = kernels_thorough.between_nan(x)
    assert around.as_strided((8,), (1,), around.storage_offset() + 8).isnan().all()


MUTANTS = [Mutant("minillama.parity.kernels_thorough", "must & ~x.isnan()", "must & x.isnan()",
                  lambda: test_what_breaks_a_law_is_named("hides", {"out"}))]
if "simt" in kernels.built_backends():
    MUTANTS.append(Mutant("minillama.kernels", "how = (_table(rotations), positions, offset",
                          "how = (_table(rotations), None, offset",
                          lambda: test_all_cases_and_laws_hold_on_the_emulator("rope", torch.bfloat16)))
