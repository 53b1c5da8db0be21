"""Hostile files: whatever is damaged, loading ends well or in one line; no crash, no hang, no flood of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FORMS = ["pth", "params", "bin", "safetensors", "config", "index", "llama2c0", "llama2c1", "llama2c2", "gguf",
         "gguf_q8", "gguf_scaled", "quantized_nf4", "quantized_int8", "quantized_nf4_params", "quantized_int8_params",
         "vocab_bin", "tiktoken", "tokenizer_json", "sentencepiece"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits address space by Linux's means")


def damage(count, forms, folder):
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, tests / "mutated_files.py", str(count), folder, *forms],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-2000:]  # a crash of the process ends here
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["form"] for result in results] == list(forms)
    return [result for result in results if result["failed"]]


def test_damaged_files_of_every_form_end_well_or_in_one_line(tmp_path):
    assert not damage(200, FORMS, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_five_thousand_damaged_files_end_well_or_in_one_line(form, tmp_path):
    assert not damage(5000, [form], tmp_path)


@pytest.mark.long
def test_a_reader_that_trusts_its_file_is_caught(tmp_path):
    failed = damage(200, ["trusting"], tmp_path)
    assert failed and {failure.split()[1] for failure in failed[0]["failures"]} & {"MemoryError:", "IndexError:"}
