"""The `adapters` package and we compute the same. It wants an older transformers: it runs in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mutants import Mutant, planted
from tuned_models import small_model, tokens, trained, tuned

from minillama.checkpoint.names import state_dict_to_hf
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.peft.adapter_file import load_adapter, save_adapter

pytestmark = pytest.mark.long
TWIN = Path(__file__).parent / "adapters_twin.py"
M = 4  # inner width: the package is given D / M, which must be whole
PLACES = {"attention.wo": "attention_adapters", "feed_forward.w2": "output_adapters", "feed_forward": "output_adapters"}


def package_name(ours):
    """layers.0.attention.wo.down.weight -> model.layers.0.attention_adapters.adapters.ours.adapter_down.0.weight"""
    _, number, path = ours.split(".", 2)
    place, side, kind = path.rsplit(".", 2)
    part = "adapter_down.0" if side == "down" else "adapter_up"
    return f"model.layers.{number}.{PLACES[place]}.adapters.ours.{part}.{kind}"


def write_models(folder):
    """The small model, texts and both adapters, as the package is to read them."""
    c = small_model().config
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": c.dim, "num_hidden_layers": c.n_layers, "vocab_size": c.vocab_size,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "intermediate_size": c.hidden_dim,
        "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tie_embeddings}))
    state = state_dict_to_hf(small_model().state_dict(), c.n_heads, c.n_kv_heads)
    write_safetensors(folder / "base.safetensors", state)
    write_safetensors(folder / "texts.safetensors", {"texts": tokens()})
    for name in ("adapter", "parallel-adapter"):
        tensors = {package_name(key): parameter.detach() for key, parameter in trained(tuned(name, M)).items()}
        write_safetensors(folder / f"{name}.safetensors", tensors)
    (folder / "ours").mkdir()
    save_adapter(folder / "ours", tuned("adapter", M))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """case -> what the package computes, from one process for all."""
    brought = os.environ.get("MINILLAMA_ADAPTERS")
    if not brought or not (Path(brought) / "adapters").is_dir():
        pytest.skip("needs the adapters package beside an older transformers: set MINILLAMA_ADAPTERS to a folder that "
                    "was filled as tests/oracles.txt says")
    write_models(folder := tmp_path_factory.mktemp("package"))
    paths = os.pathsep.join(filter(None, [brought, os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, TWIN, folder, str(M)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return lambda case: folder / case if case == "theirs" else read_safetensors(folder / f"{case}-result.safetensors")


def furthest(theirs, name):
    """How far our logits, and the gradients of their mean square, are from the package's, each as a share of the
    largest number there."""
    model = tuned(name, M)
    ours = model(tokens())
    ours.square().mean().backward()
    assert float((ours - small_model()(tokens())).detach().abs().max()) > 0.05, "the adapter changes the model"
    assert sum(parameter.numel() for parameter in trained(model).values()) == int(theirs["trained"])
    pairs = [(ours.detach(), theirs["logits"])]
    pairs += [(parameter.grad, theirs[package_name(key)]) for key, parameter in trained(model).items()]
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.parametrize("name", ["adapter", "parallel-adapter"])
def test_the_package_and_we_have_the_same_logits_gradients_and_counts(name, package):
    assert furthest(package(name), name) < 1e-5


def test_the_packages_parallel_adapter_reads_the_stream_before_the_norm_and_ours_behind_it(package):
    """arXiv 2110.04366 has it read what the layer reads; where a model normalizes first these are two things."""
    assert furthest(package("parallel-adapter as it is"), "parallel-adapter") > 1e-2


def test_the_package_reads_the_adapter_that_we_save_and_we_the_one_that_it_saves(package):
    ours = tuned("adapter", M)(tokens()).detach()
    theirs = package("adapter from our files")["logits"]
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
    load_adapter(package("theirs"), model := small_model())
    assert torch.equal(model(tokens()).detach(), ours)


@pytest.mark.parametrize(("name", "old", "new"), [
    ("adapter", ".relu()", ".tanh()"), ("parallel-adapter", "(x if self.parallel else y)", "y"),
    ("adapter", '("attention.wo", "feed_forward.w2")', '("feed_forward.w2",)')])
def test_a_planted_mistake_is_seen(name, old, new, package):
    with planted(Mutant("minillama.peft.adapter", old, new, None)), pytest.raises(AssertionError):
        assert furthest(package(name), name) < 1e-5
