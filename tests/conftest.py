"""Shared by all tests: real weights where they are present, and how tests that run side by side share the cores."""

import os
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # `nohup run.py test &`: what tests start would be deaf too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(getattr(signal, "SIGHUP", signal.SIGINT)) == signal.SIG_IGN:  # and the tests themselves stay deaf
    signal.signal(signal.SIGHUP, lambda *_: None)  # a program that is started has the default in a handler's place
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads starve a busy laptop
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one of several test processes: each has a core

import pytest

sys.path += [str(room) for room in sorted(Path(__file__).parent.iterdir()) if room.is_dir()]  # tests share helpers

# Tests whose results come from the CPU's vectors: bounds, bits that must be equal, files of quantized weights.
NUMERIC = ("attention attention_kernel attention_masks backends backends_linear dpo engine engine_decoding "
           "experience gae gguf_blocks gguf_llama int8 kernels_training kernels_verify kv_cache likelihood llama2c "
           "lora lora_gradients nearest nf4 nf4_chunks nf4_kernel nf4_scales nf4_tables optimizer packing perplexity "
           "ppo quantize_linears quantized_linear rms_norm rollout rope rope_kernel rope_qk rounding sampling "
           "sequence_loss swiglu tiled_attention tiled_attention_gradients transformer transformer_parity "
           "vocabulary").split()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.name.startswith("test_every_command_runs"))  # longest first
    for item in items:
        parameters = item.callspec.params if item.path.stem == "test_mutants" and hasattr(item, "callspec") else {}
        if parameters.get("file", item.path.stem).removeprefix("test_") in NUMERIC:
            item.add_marker("numeric")


@pytest.fixture(scope="session")
def weights():
    """The folder of real weights and tokenizers; without it the test is skipped, saying so."""
    folder = os.environ.get("MINILLAMA_WEIGHTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real weights: set MINILLAMA_WEIGHTS to a folder with stories260K.bin, tok512.bin, "
                    "llama_tokenizer.model and the llama.cpp vectors")
    return Path(folder)


@pytest.fixture(params=("plain", "avx2", "avx512"))
def vectors(request):
    """Each kind of loops of the compiled kernels that this CPU can run."""
    import torch

    try:
        torch.ops.minillama.set_vectors(request.param)
    except RuntimeError:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    torch.ops.minillama.set_vectors("best")
