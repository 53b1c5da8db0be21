"""Laws of the memory arithmetic: bytes follow from the shapes, and what cannot fit is refused before it is tried."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import Mutant

from minillama.config import PRESETS, preset
from minillama.kv_cache import KVCache
from minillama.memory import (
    address_limit,
    available_bytes,
    cache_bytes,
    explain_shortage,
    peak_memory,
    require_memory,
    weights_bytes,
)
from minillama.transformer import Transformer


def test_the_peak_is_bytes_and_keeps_what_was_given_back():
    if peak_memory() is None:
        pytest.skip("this system does not tell a process's peak")
    held = b"x" * 2**28  # by this process: it does not count as the other's
    code = "from minillama.memory import peak_memory as p; a = p(); b = len(b'x' * 2**28); print(a, p())"
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
    assert (nf4 - 2 * rest) * 8 / linears == pytest.approx(4.127, abs=5e-4)
    assert weights_bytes(config, "nf4", rest=4) - nf4 == 2 * rest


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
                          cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on address space is Linux's")
def test_a_limit_on_address_space_bounds_what_is_free():
    code = ("import resource as r; r.setrlimit(r.RLIMIT_AS, (2**30, 2**30)); from minillama.memory import *\n"
            "print(address_limit(), available_bytes())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    limit, free = map(int, done.stdout.split())
    assert limit == 2**30 and 0 < free < 2**30
    assert address_limit() is None or address_limit() > 2**30


MUTANTS = [
    Mutant("minillama.memory", "isinstance(error, MemoryError) or told", "told",
           test_every_kind_of_shortage_is_one_line_with_its_size_and_flags_that_the_command_has),
    Mutant("minillama.memory", "return 2 * config.n_layers", "return config.n_layers",
           test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need),
    Mutant("minillama.memory", "config.n_layers * batch", "config.n_layers",
           test_a_cache_has_the_bytes_of_the_one_that_is_made),
    Mutant("minillama.memory", "tokens * bytes_per_number", "bytes_per_number",
           test_a_cache_has_the_bytes_of_the_one_that_is_made),
    Mutant("minillama.memory", "batch * config.n_kv_heads", "batch * config.n_heads",
           test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need),
    Mutant("minillama.memory", '"nf4": 4 + 8 / 64', '"nf4": 4 + 32 / 64',
           lambda: test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits("llama_7b")),
    Mutant("minillama.memory", "+ rest * (config", "+ 2 * (config",
           lambda: test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits("llama_7b")),
    Mutant("minillama.memory", "needed > free", "needed < free",
           test_what_does_not_fit_is_refused_with_both_numbers_and_a_way_out),
]
