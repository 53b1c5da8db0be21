"""Laws of the memory arithmetic: bytes follow from the shapes, and what cannot fit is refused before it is tried."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import Mutant

from minillama.config import PRESETS, ModelConfig, preset
from minillama.kv_cache import KVCache
from minillama.system import memory
from minillama.system.memory import (
    activation_bytes,
    address_limit,
    available_bytes,
    cache_bytes,
    explain_shortage,
    peak_memory,
    require_device,
    require_memory,
    require_room_for_torch,
    require_step_memory,
    weights_bytes,
)
from minillama.transformer import Transformer


def test_the_peak_is_bytes_and_keeps_what_was_given_back():
    if peak_memory() is None:
        pytest.skip("this system does not tell a process's peak")
    held = b"x" * 2**28  # by this process: it does not count as the other's
    code = "from minillama.system.memory import peak_memory as p; a = p(); b = len(b'x' * 2**28); print(a, p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 2**22 < before < len(held) < after < before + 1.1 * 2**28


@pytest.mark.parametrize("name", ["stories260k", "tiny", "nano"])
def test_fp32_and_fp16_bytes_are_those_of_the_built_model(name):
    model = Transformer(preset(name))
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights_bytes(preset(name), "fp32") == stored == 2 * weights_bytes(preset(name), "fp16")


def test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need():
    # 2 (k and v) * 80 layers * 8 heads * 128 numbers * 2 bytes, by hand
    assert cache_bytes(preset("llama2_70b"), tokens=1) == 327_680
    assert cache_bytes(preset("llama2_70b", n_kv_heads=64), tokens=1) == 8 * 327_680


def test_a_cache_has_the_bytes_of_the_one_that_is_made():
    for batch, tokens in ((1, 1), (3, 7), (5, 2)):
        config = preset("tiny")
        cache = KVCache(config, batch, tokens)
        stored = sum(x.numel() * x.element_size() for x in (cache.keys, cache.values))
        assert cache_bytes(config, tokens, batch, bytes_per_number=4) == stored


@pytest.mark.parametrize("name", [n for n in PRESETS if n.endswith("b")])
def test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits(name):
    config = preset(name)
    fp16, int8, nf4 = (weights_bytes(config, kind) for kind in ("fp16", "int8", "nf4"))
    assert fp16 > int8 > nf4
    with torch.device("meta"):
        blocks = Transformer(config).layers
    linears = sum(p.numel() for p in blocks.parameters() if p.dim() == 2)
    rest = config.n_parameters() - linears
    # 4 bits, an 8-bit scale for 64 weights, an fp32 one for 256 of those: 4.127
    assert (nf4 - 2 * rest) * 8 / linears == pytest.approx(4 + 1 / 8 + 1 / 512, abs=1e-6)
    assert weights_bytes(config, "nf4", rest=4) - nf4 == 2 * rest


def test_int8_takes_a_byte_for_a_weight_and_four_for_a_row():
    """Of a square model, whose rows all have its width; heads and norms keep two bytes."""
    config = ModelConfig(32, 3, 4, 11, 2, hidden_dim=32)
    rows = 3 * (32 + 16 + 16 + 32 + 3 * 32)
    rest = 2 * 11 * 32 + (2 * 3 + 1) * 32
    assert weights_bytes(config, "int8") == rows * 32 + 4 * rows + 2 * rest
    assert weights_bytes(config, "int8", rest=4) == rows * 32 + 4 * rows + 4 * rest
    assert weights_bytes(config, "nf4", rest=4) == int(rows * 32 * 4.126953125 / 8) + 4 * rest, "its scales are in it"


def test_a_step_keeps_what_its_formula_counts_and_no_less():
    """D 24, q 32 wide, k and v 16, F 40, V 11: a block keeps q, k, v, attention's 32, three of F, two of D."""
    config = ModelConfig(24, 3, 4, 11, 2, head_dim=8, hidden_dim=40)
    block = 32 + 16 + 16 + 32 + 3 * 40 + 2 * 24
    assert activation_bytes(config, 5, 7) == 5 * 7 * (4 * 3 * block + 8 * 11)
    assert activation_bytes(config, 5, 7, size=2, vocabulary=False) == 5 * 7 * 2 * 3 * block
    assert activation_bytes(config, 1, 1, recompute=True) == 4 * 3 * 24 + 8 * 11
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = Transformer(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(5, 7, dtype=torch.int64)).logsumexp(-1).sum()
    saved = sum(size for place, size in kept.items() if place not in weights)
    assert activation_bytes(config, 5, 7, vocabulary=False) <= saved


def test_a_step_is_refused_by_its_activations_or_by_the_batches_drawn(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "require_memory", lambda *given: asked.append(given))
    config = ModelConfig(24, 3, 4, 11, hidden_dim=40)
    require_step_memory(config, 5, 3, 7, "mps", size=2)
    assert asked == [(activation_bytes(config, 5, 7, size=2), "a step of 5 x 7 tokens", "mps", "lower --batch-size"),
                     (24 * 5 * 3 * 7, "drawing 3 batches of 5", "cpu", "lower --batch-size or --grad-accumulation")]


def test_what_just_fits_is_told_and_a_byte_more_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3 * 2**29)
    assert require_memory(3 * 2**29, "all") == "all: 1.50 GiB, 1.5 GiB free"
    with pytest.raises(ValueError, match="all needs 1.50 GiB and 1.50 GiB are free on cpu: use less"):
        require_memory(3 * 2**29 + 1, "all", way_out="use less")
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert require_memory(2**70, "all") == f"all: {2**40:.2f} GiB"


@pytest.mark.parametrize(("device", "cuda", "mps", "there"), [
    ("cpu", 0, False, True), ("cuda", 0, False, False), ("cuda", 1, False, True), ("cuda:1", 1, False, False),
    ("cuda:1", 2, False, True), ("mps", 0, True, True), ("mps", 4, False, False)])
def test_a_device_that_is_not_here_is_refused(monkeypatch, device, cuda, mps, there):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if there:
        return require_device(device)
    with pytest.raises(ValueError, match=f"device '{device}' is not present"):
        require_device(device)


@pytest.mark.parametrize(("group", "address", "free"), [
    (None, None, 7000), (("max", "5"), None, 7000), ((str(9000 * 1024), str(4000 * 1024)), None, 5000),
    ((str(9000 * 1024), str(1024)), None, 7000), (("1024", "2048"), None, 0), (None, 6500 * 1024, 5000),
    (None, 1400 * 1024, 0), (None, 9999 * 1024, 7000)])
def test_what_is_free_on_linux_is_the_least_of_system_container_and_address_limit(monkeypatch, group, address, free):
    files = {"/proc/meminfo": "MemTotal:  8000 kB\nMemAvailable:    7000 kB\n", "/proc/self/status": "VmSize:\t1500 kB"}
    if group:
        files["/sys/fs/cgroup/memory.max"], files["/sys/fs/cgroup/memory.current"] = f"{group[0]}\n", f"{group[1]}\n"
    monkeypatch.setattr(memory, "Path", lambda path: Namespace(read_text=lambda: files[path],
                                                               exists=lambda: path in files))
    monkeypatch.setattr(memory, "address_limit", lambda: address)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert available_bytes() == free * 1024


def test_what_is_free_on_macos_is_free_inactive_and_speculative_pages(monkeypatch):
    report = ("Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:         30.\n"
              "Pages active:  999.\nPages inactive:  200.\nPages speculative:    4.\nPages wired down: 7.\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *words, **more: Namespace(stdout=report))
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert available_bytes() == 234 * 16384
    monkeypatch.setattr(memory.sys, "platform", "plan9")
    assert available_bytes() is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77, 99) if device == "cuda:1" else None)
    assert available_bytes("cuda:1") == 77


@pytest.mark.parametrize(("limit", "code", "said", "refused"), [
    (None, 1, "", False), (16 * 2**30, 1, "", False), (16 * 2**30 - 1, 1, "", True), (2**30, 0, "", False),
    (2**30, 1, "ModuleNotFoundError: no torch", False), (2**30, -6, "terminate called", True)])
def test_a_narrow_address_space_is_tried_by_a_child(monkeypatch, limit, code, said, refused):
    monkeypatch.setattr(memory, "address_limit", lambda: limit)
    monkeypatch.setattr(memory.subprocess, "run", lambda *words, **more: Namespace(returncode=code, stderr=said))
    if not refused:
        return require_room_for_torch()
    with pytest.raises(MemoryError, match=f"within {limit >> 20} MiB of address space"):
        require_room_for_torch()


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("CUDA out of memory. Tried to allocate 20.5 GiB (GPU 0)"), ", 20.5 GiB were asked for at once"),
    (RuntimeError("not enough memory: you tried to allocate 1610612736 bytes."), ", 1.50 GiB were asked for at once"),
    (OSError(12, "Cannot allocate memory"), "out of memory"), (OSError(28, "No space left"), None),
    (ImportError("lib.so: failed to map segment from shared object"), "out of memory"),
    (MemoryError(), "out of memory"),
    (ValueError("out of memory"), None), (MemoryError("raise it,\n `ulimit -v 9`"), "raise it, `ulimit -v 9`")])
def test_of_an_error_its_kind_and_words_tell_whether_memory_ran_out(error, said, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * 2**30)
    found = explain_shortage(error, Namespace())
    if said is None:
        assert found is None
    elif said.startswith("raise"):
        assert found == said
    else:
        assert found.startswith("out of memory") and said in found and ", 3.00 GiB are free: close" in found
        assert found.count("asked for") == ("asked for" in said)


def test_a_shortage_in_the_package_is_told_with_its_function():
    def crowded(*given):
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "weights_bytes", crowded)
        assert not shortage(lambda: memory.weights_bytes()).startswith("out of memory in"), "a test's own function"
        patch.setattr(memory, "activation_bytes", crowded)
        config = ModelConfig(24, 1, 4, 11, hidden_dim=40)
        text = shortage(lambda: require_step_memory(config, 1, 1, 1, "cpu"))
    assert text.startswith("out of memory in require_step_memory (memory.py), ")


def test_what_does_not_fit_is_refused_with_both_numbers_and_a_way_out():
    free = available_bytes()
    if free is None:
        pytest.skip("this system does not tell its free memory")
    assert "GiB" in require_memory(1, "one byte")
    with pytest.raises(ValueError, match="llama needs .* GiB and .* GiB are free on cpu: .*smaller"):
        require_memory(2 * free, "llama")


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'int3' is not known: choose one of fp32, fp16, int8, nf4"):
        weights_bytes(preset("tiny"), "int3")


def shortage(make, **options):
    try:
        make()
    except Exception as error:
        return explain_shortage(error, Namespace(**options))


def test_every_kind_of_shortage_is_one_line_with_its_size_and_flags_that_the_command_has():
    by_torch = shortage(lambda: torch.empty(1 << 50, dtype=torch.uint8), batch_size=8, seq_len=9)
    assert "1048576.00 GiB were asked for" in by_torch and by_torch.endswith("ask for less: --batch-size, --seq-len")
    by_numpy = shortage(lambda: np.ones(1 << 50, dtype=np.uint8))
    assert "1.00 PiB were asked for" in by_numpy and "--" not in by_numpy and "ulimit -v" in by_numpy
    by_python = shortage(lambda: bytearray(1 << 60), max_length=1)
    assert by_python.endswith("ask for less: --max-length")
    for text in (by_torch, by_numpy, by_python):
        assert "\n" not in text and "GiB are free" in text
    assert shortage(lambda: torch.zeros(2) @ torch.zeros(3)) is None and shortage(lambda: int("memory")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on address space is Linux's")
@pytest.mark.parametrize(("kib", "words", "said"), [
    (200_000, "info", "PyTorch does not load within 195 MiB of address space: raise the limit, `ulimit -v unlimited`"),
    *(pytest.param(kib, words, "PyTorch does not load within", marks=pytest.mark.long)
      for kib in (300_000, 450_000, 600_000) for words in ("info", "lesson 1", "pretrain --text x --out y"))])
def test_under_a_small_limit_one_line_says_what_did_not_fit(kib, words, said):
    done = subprocess.run(["sh", "-c", f"ulimit -v {kib}; exec '{sys.executable}' -m minillama {words}"],
                          cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on address space is Linux's")
def test_a_limit_on_address_space_bounds_what_is_free():
    code = ("import resource as r; r.setrlimit(r.RLIMIT_AS, (2**30, 2**30)); from minillama.system.memory import *\n"
            "print(address_limit(), available_bytes())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    limit, free = map(int, done.stdout.split())
    assert limit == 2**30 and 0 < free < 2**30
    assert address_limit() is None or address_limit() > 2**30


MUTANTS = [
    Mutant("minillama.system.memory", "isinstance(error, MemoryError) or told", "told",
           test_every_kind_of_shortage_is_one_line_with_its_size_and_flags_that_the_command_has),
    Mutant("minillama.system.memory", "return 2 * config.n_layers", "return config.n_layers",
           test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need),
    Mutant("minillama.system.memory", "config.n_layers * batch", "config.n_layers",
           test_a_cache_has_the_bytes_of_the_one_that_is_made),
    Mutant("minillama.system.memory", "tokens * bytes_per_number", "bytes_per_number",
           test_a_cache_has_the_bytes_of_the_one_that_is_made),
    Mutant("minillama.system.memory", "batch * config.n_kv_heads", "batch * config.n_heads",
           test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need),
    Mutant("minillama.system.memory", '"nf4": 4 + 8 / 64', '"nf4": 4 + 32 / 64',
           lambda: test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits("llama_7b")),
    Mutant("minillama.system.memory", "+ rest * (config", "+ 2 * (config",
           lambda: test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits("llama_7b")),
    Mutant("minillama.system.memory", "needed > free", "needed < free",
           test_what_does_not_fit_is_refused_with_both_numbers_and_a_way_out),
]
