"""Helpers shared by the tests of checkpoint forms: models whose every number matters, and their comparison."""

import tempfile
from pathlib import Path

import pytest
import torch

from minillama.transformer import Transformer

FP32_NOISE = 2e-5  # two right fp32 programs differ by this at logits of size 10: they sum in other orders


def model_of(config, seed=0, dtype=torch.float32):
    """Random weights with norms away from 1, so that a norm in the wrong place shows."""
    torch.manual_seed(seed)
    model = Transformer(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return model.to(dtype)


def assert_same_weights(model, copy):
    """The same names, dtypes and bits."""
    ours, theirs = model.state_dict(), copy.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def assert_same_logits(ours, theirs, noise=FP32_NOISE):
    scale = max(theirs.abs().max().item() / 10, 1.0)
    assert (ours - theirs).abs().max().item() <= noise * scale
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def transformers():
    return pytest.importorskip("transformers", reason="the oracle: pip install -r tests/oracles.txt")


def logits_of_transformers(folder, tokens):
    with torch.no_grad():
        return transformers().LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits


def in_a_folder(law):
    """A law that wants `tmp_path`, called outside of pytest."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        law(Path(folder))
