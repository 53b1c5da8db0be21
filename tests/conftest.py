"""Shared by all tests: real weights where they are present, and how tests that run side by side share the cores."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads starve a busy laptop
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one of several test processes: each has a core

import pytest


@pytest.fixture(scope="session")
def weights():
    """The folder of real weights and tokenizers; without it the test is skipped, saying so."""
    folder = os.environ.get("MINILLAMA_WEIGHTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real weights: set MINILLAMA_WEIGHTS to a folder with stories260K.bin, tok512.bin, "
                    "llama_tokenizer.model and the llama.cpp vectors")
    return Path(folder)
