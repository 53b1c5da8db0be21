"""Laws of `info`: what it says about this machine is what the libraries themselves say."""

import re

import torch
from mutants import Mutant

from minillama import info
from minillama.checkpoint import save_model
from minillama.config import PRESETS, ModelConfig
from minillama.info import describe, devices
from minillama.kernels import built_backends
from minillama.memory import GIB, available_bytes, weights_bytes
from minillama.tokenizer import default_backend
from minillama.transformer import Transformer


def test_versions_backends_and_threads_are_the_real_ones():
    text = describe()
    assert torch.__version__ in text and f"threads: {torch.get_num_threads()}" in text
    assert f"tokenizer backend: {default_backend()}" in text
    assert f"kernel backends built: {', '.join(built_backends())}" in text
    assert devices()[0] == "cpu" and any("cuda" in name for name in devices()) == torch.cuda.is_available()


def test_a_star_stands_where_a_size_fits_and_nowhere_else():
    free, text = available_bytes(), describe()
    for name in [name for name in PRESETS if "b" in name]:
        cells = re.search(rf"^{name} +(.*)$", text, flags=re.M)[1]
        found = re.findall(r"([\d.]+)( \*)?", cells)
        for (shown, star), kind in zip(found, ("fp16", "int8", "nf4"), strict=True):
            needed = weights_bytes(PRESETS[name], kind)
            assert float(shown) == round(needed / GIB, 1)
            if free is None or abs(needed - free) > 0.1 * free:  # the free memory moves between two looks
                assert bool(star) == (free is not None and needed < free), (name, kind)


def test_each_line_has_its_place_and_unknown_memory_is_said(monkeypatch):
    monkeypatch.setattr(info, "available_bytes", lambda: int(7.25 * GIB))
    lines = describe().splitlines()
    names = ["minillama", "python", "kernel backends built:", "tokenizer backend:", "threads:", "devices:",
             "memory free: 7.2 GiB", "", "weights of the published sizes"]
    assert all(line.startswith(name) for line, name in zip(lines, names, strict=False)) and lines[7] == ""
    assert lines[9].split() == ["fp16", "int8", "nf4"] and len(lines) == 10 + sum("b" in name for name in PRESETS)
    assert {len(line) for line in lines[9:]} == {44}, "the columns stand under their heads"
    monkeypatch.setattr(info, "available_bytes", lambda: None)
    assert "memory free: unknown" in describe() and " *" not in describe().split("free memory:")[1]
    monkeypatch.setattr(info, "available_bytes", lambda: 0)
    assert "memory free: 0.0 GiB" in describe() and " *" not in describe().split("free memory:")[1]


def test_every_device_that_torch_can_use_is_named(monkeypatch):
    for cuda, mps, named in ((False, False, ["cpu"]), (True, False, ["cpu", "cuda (H200)"]),
                             (False, True, ["cpu", "mps"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices() == named


def test_a_checkpoint_is_described_by_what_it_stores(tmp_path):
    """32 * 96 weights in the table and again in the head; each layer 4 * 32 * 32 + 3 * 32 * 40, and its two norms."""
    shape = ModelConfig(32, 2, 4, 96, hidden_dim=40, max_seq_len=64)
    save_model(tmp_path / "a", Transformer(shape))
    count = 2 * 32 * 96 + 2 * (4 * 32 * 32 + 3 * 32 * 40 + 2 * 32) + 32
    assert info.describe_checkpoint(tmp_path / "a").splitlines() == [
        f"{tmp_path / 'a'}: {count:,} parameters in float32",
        "dim 32, n_layers 2, n_heads 4, n_kv_heads 4, hidden_dim 40, vocab_size 96, max_seq_len 64",
        f"all together 32.00 bits a weight, {4 * count / 2**20:,.1f} MiB", "tokenizer: none"]


MUTANTS = [
    Mutant("minillama.info", "needed < free", "needed > free", test_a_star_stands_where_a_size_fits_and_nowhere_else),
]
