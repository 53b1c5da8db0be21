"""Shared by all tests: real weights where they are present, and how tests that run side by side share the cores."""

import gc
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
from _pytest.assertion import util  # where the explanations of failed assertions are made

LONGEST_EXPLAINED = 2_000  # characters of what is compared
SECONDS_OF_A_QUICK_TEST = 900  # far above any on a busy laptop: a test that hangs fails and shows where it stood

sys.path += [str(room) for room in sorted(Path(__file__).parent.iterdir()) if room.is_dir()]  # tests share helpers

# Tests whose results come from the CPU's vectors: bounds, bits that must be equal, files of quantized weights.
NUMERIC = ("attention attention_kernel attention_masks backends backends_linear dpo engine engine_decoding "
           "experience gae gguf_blocks gguf_llama int8 kernels_training kernels_verify kv_cache likelihood llama2c "
           "lora lora_gradients nearest nf4 nf4_chunks nf4_kernel nf4_scales nf4_tables optimizer packing perplexity "
           "ppo quantize_linears quantized_linear rms_norm rollout rope rope_kernel rope_qk rounding sampling "
           "sequence_loss swiglu tiled_attention tiled_attention_gradients transformer transformer_parity "
           "vocabulary").split()


gc.disable()  # a third of what collection takes would go into looking for garbage among what stays


def pytest_collection_finish():
    gc.enable()
    gc.freeze()  # modules and tests are looked through no more


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.name.startswith("test_every_command_runs"))  # longest first
    for item in items:
        parameters = item.callspec.params if item.path.stem == "test_mutants" and hasattr(item, "callspec") else {}
        if parameters.get("file", item.path.stem).removeprefix("test_") in NUMERIC:
            item.add_marker("numeric")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test ends: long texts that differ are not compared line by line, and one that hangs is stopped.

    pytest's list of all differences takes more than quadratic time, more than an hour for a page of 280 KB; and where
    the variable CI is set, it is made for every comparison that fails, a planted fault's too.
    """
    explain = util._reprcompare
    util._reprcompare = lambda op, left, right: None if is_long(left) or is_long(right) else explain(op, left, right)
    watched = hasattr(signal, "SIGALRM") and not item.get_closest_marker("long") and not any(
        signal.getitimer(signal.ITIMER_REAL))  # the planter of random faults has a limit of its own
    if watched:
        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS_OF_A_QUICK_TEST)
    try:
        return (yield)
    finally:
        util._reprcompare = explain
        if watched:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def is_long(value):
    return isinstance(value, str | bytes | list | tuple | dict | set) and len(repr(value)) > LONGEST_EXPLAINED


def stop(*_):
    pytest.fail(f"the test took more than {SECONDS_OF_A_QUICK_TEST} s")


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
