"""What eight bits cost real weights: the record that lesson 22 shows, and the measurement behind it."""

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))
import eight_bits  # noqa: E402

RECORD = json.loads((ROOT / "bench" / "eight_bits.json").read_text(encoding="utf-8"))


def test_the_record_has_two_real_models_in_three_forms_and_eight_bits_cost_less_than_four():
    assert set(RECORD["models"]) == {"stories260K", "SmolLM2-135M-Instruct"}
    for name, forms in RECORD["models"].items():
        assert list(forms) == ["fp32", "int8", "NF4"]
        for row in forms.values():
            assert row["perplexity"] == pytest.approx(math.exp(row["nats"]), rel=1e-3)
            assert row["nats"] == pytest.approx(forms["fp32"]["nats"] + row["more"], abs=2e-4) and row["tokens"] > 250
        assert forms["fp32"]["more"] == 0 and abs(forms["int8"]["more"]) < 0.03, name
        assert forms["NF4"]["more"] > abs(forms["int8"]["more"]) + 2 * forms["int8"]["error"], name


def test_the_record_is_measured_again_on_the_weights_that_are_here():
    if "stories260K" not in eight_bits.models():
        pytest.skip("needs stories260K.bin in the folder that MINILLAMA_WEIGHTS names")
    found, wanted = eight_bits.measure(eight_bits.models()["stories260K"]), RECORD["models"]["stories260K"]
    for form, row in wanted.items():
        # another rounding of sums moves an int8 code by one here and there; far below the cost itself
        assert found[form]["nats"] == pytest.approx(row["nats"], abs=2e-3), form
        assert found[form]["tokens"] == row["tokens"]
