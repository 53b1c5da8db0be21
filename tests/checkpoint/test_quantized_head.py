"""Quantized checkpoints whose output head is quantized too, and codes that a kernel finds: the same bytes."""

import pytest
import torch
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant

from minillama import kernels
from minillama.backends import use_kernels
from minillama.checkpoint import load_model, open_weights, save_model
from minillama.checkpoint.convert import convert, quantize
from minillama.cli.info import examine_checkpoint
from minillama.config import ModelConfig
from minillama.engine import refusal
from minillama.quant.quantize_linears import quantize_linears

CONFIG = ModelConfig(dim=38, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=18, vocab_size=53, hidden_dim=33,
                     max_seq_len=16)
TIED = ModelConfig(dim=64, n_layers=1, n_heads=2, vocab_size=31, hidden_dim=64, max_seq_len=16, tie_embeddings=True)
TOKENS = torch.arange(1, 14)[None]
FILE = "quantized.safetensors"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_head_is_quantized_too_where_that_is_asked_for(kind, tmp_path):
    model = model_of(CONFIG)
    save_model(tmp_path / "whole", model)
    quantize(tmp_path / "whole", tmp_path / "few", kind, head="int8")
    quantize_linears(model, kind=kind)
    quantize_linears(model, ("output",), "int8", skip=())
    found = load_model(tmp_path / "few")[0]
    assert_same_weights(model, found)
    assert torch.equal(model(TOKENS), found(TOKENS))
    settings = open_weights(tmp_path / "few").quantization
    assert (settings["kind"], settings["head"]) == (kind, "int8")
    assert "head int8: 15 linear layers" in examine_checkpoint(tmp_path / "few")[0]
    convert(tmp_path / "few", tmp_path / "again", "meta")
    assert torch.equal(load_model(tmp_path / "again")[0].output.weight, found.output.dequantize())
    if "cpu" in kernels.built_backends():
        assert refusal(use_kernels(found, "cpu")) is None


def test_a_head_that_is_the_embedding_table_stays_as_it_is(tmp_path):
    save_model(tmp_path / "whole", model_of(TIED))
    with pytest.raises(ValueError, match="the head is the embedding table, which stays as it is"):
        quantize(tmp_path / "whole", tmp_path / "few", "nf4", head="int8")
    with pytest.raises(ValueError, match="head 'int4' is not known: use int8"):
        quantize(tmp_path / "whole", tmp_path / "few", "nf4", head="int4")
    assert not (tmp_path / "few").exists()


@pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
@pytest.mark.parametrize("settings", [{}, {"block_size": 6, "double_quantization": False}, {"fit_scales": True}])
def test_the_kernel_quantizes_to_the_same_file(settings, tmp_path, monkeypatch):
    used, operator_of = [], kernels.operator_of
    monkeypatch.setattr(kernels, "operator_of", lambda name, *rest: used.append(name) or operator_of(name, *rest))
    save_model(tmp_path / "whole", model_of(CONFIG))
    files = []
    for backend, times in (("reference", 0), ("cpu", 14)):
        used.clear()
        quantize(tmp_path / "whole", tmp_path / backend, "nf4", backend=backend, **settings)
        assert used.count("nf4_quantize") == times
        files.append((tmp_path / backend / FILE).read_bytes())
    assert files[0] == files[1]


def with_a_head():
    in_a_folder(lambda folder: test_the_head_is_quantized_too_where_that_is_asked_for("nf4", folder))


def by_a_kernel():
    with pytest.MonkeyPatch.context() as patch:
        in_a_folder(lambda folder: test_the_kernel_quantizes_to_the_same_file({}, folder, patch))


MODULE = "minillama.checkpoint.quantized"
MUTANTS = [
    Mutant(MODULE, "of_layer if name == HEAD else settings", "settings", with_a_head),
    Mutant(MODULE, '**({"head": head} if head else {})', "", with_a_head),
    Mutant(MODULE, "if head and weights.config.tie_embeddings", "if False",
           lambda: in_a_folder(test_a_head_that_is_the_embedding_table_stays_as_it_is)),
    Mutant(MODULE, '({"backend": backend} if kind == "nf4" else {})', "{}", by_a_kernel),
]
