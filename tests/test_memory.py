"""Laws of the memory arithmetic: bytes follow from the shapes, and what cannot fit is refused before it is tried."""

import subprocess
import sys

import pytest
import torch
from mutants import Mutant

from minillama.config import PRESETS, preset
from minillama.memory import available_bytes, cache_bytes, peak_memory, require_memory, weights_bytes
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


MUTANTS = [
    Mutant("minillama.memory", "return 2 * config.n_layers", "return config.n_layers",
           test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need),
    Mutant("minillama.memory", "batch * config.n_kv_heads", "batch * config.n_heads",
           test_a_70b_cache_is_an_eighth_of_what_ungrouped_heads_would_need),
    Mutant("minillama.memory", '"nf4": 4 + 8 / 64', '"nf4": 4 + 32 / 64',
           lambda: test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits("llama_7b")),
    Mutant("minillama.memory", "+ rest * (config", "+ 2 * (config",
           lambda: test_fewer_bits_need_fewer_bytes_and_nf4_linears_cost_4_127_bits("llama_7b")),
    Mutant("minillama.memory", "needed > free", "needed < free",
           test_what_does_not_fit_is_refused_with_both_numbers_and_a_way_out),
]
