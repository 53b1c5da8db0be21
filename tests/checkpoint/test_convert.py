"""Conversion: round the circle of all forms and back to the same bits, the same text, the same tokenizer."""

from dataclasses import replace

import pytest
import torch
from byte_texts import fuzzed
from checkpoints import assert_same_weights, in_a_folder, logits_of_transformers, model_of
from mutants import Mutant
from test_tiktoken import tiny_file

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.convert import FORMS, convert, save_with_tokenizer
from minillama.config import ModelConfig, RopeScaling
from minillama.generate import generate_text
from minillama.tokenizer import train_bpe
from minillama.tokenizer.wordpiece import train_wordpiece

PLAIN = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=280, hidden_dim=96, max_seq_len=64)
LLAMA3 = ModelConfig(dim=64, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=518, hidden_dim=96, max_seq_len=64,
                     rope_theta=5e5, rope_scaling=RopeScaling(8.0), tie_embeddings=True)
SUFFIX = {"llama2c": ".bin", "gguf": ".gguf"}


def round_the_circle(start, forms, folder):
    """Convert from form to form; yields each place."""
    place = start
    for step, form in enumerate(forms):
        target = folder / f"{step}-{form}{SUFFIX.get(form, '')}"
        convert(place, target, form)
        place = target
        yield place


def test_a_wordpiece_vocabulary_goes_along_but_not_into_gguf(tmp_path):
    tokenizer = train_wordpiece(["the cat and the hat and the bat"] * 20, 24)
    save_with_tokenizer(tmp_path / "start", model_of(replace(PLAIN, vocab_size=24)), tokenizer)
    for place in round_the_circle(tmp_path / "start", ["hf", "meta"], tmp_path):
        inside = load_model(place)[1]
        assert inside.ids == tokenizer.ids and (inside.begins, inside.add_eos) == (True, False)
        assert inside.encode("The bat") == tokenizer.encode("The bat")
        assert inside.decode(inside.encode("x bat")) == "[UNK] bat"
    with pytest.raises(ValueError, match="no name for the way this tokenizer cuts words"):
        convert(place, tmp_path / "x.gguf", "gguf")


def test_every_form_gives_the_same_bits_back(tmp_path):
    tokenizer = train_bpe(["the cat and the hat and the bat"] * 20, 280)
    tokenizer.save(tmp_path / "tokenizer.model")
    model = model_of(PLAIN)
    save_model(tmp_path / "start", model, tmp_path / "tokenizer.model")
    circle = ["hf", "llama2c", "gguf", "llama2c", "meta", "gguf", "hf"]
    for place in round_the_circle(tmp_path / "start", circle, tmp_path):
        copy, inside = load_model(place)
        assert copy.config == PLAIN, place
        assert_same_weights(model, copy)
        assert inside.pieces == tokenizer.pieces, place


def test_half_precision_and_a_byte_level_vocabulary_survive_too(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiny_file())
    for dtype in (torch.bfloat16, torch.float16):
        model = model_of(LLAMA3, dtype=dtype)
        folder = tmp_path / str(dtype)
        save_model(folder / "start", model, tmp_path / "tokenizer.model")
        _, tokenizer = load_model(folder / "start")
        for place in round_the_circle(folder / "start", ["hf", "gguf", "hf", "meta"], folder):
            copy, inside = load_model(place)
            assert copy.config == LLAMA3, place
            assert_same_weights(model, copy)
            assert (inside.bos_id, inside.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
            assert all(inside.encode(text) == tokenizer.encode(text) for text in fuzzed(50, seed=6))


def test_stories260k_tells_its_story_from_every_form(weights, tmp_path):
    model, tokenizer = load_model(weights / "stories260K.bin")
    story = "".join(generate_text(model, tokenizer, "", 200))
    start = weights / "stories260K.bin"
    for place in round_the_circle(start, ["meta", "hf", "gguf", "llama2c"], tmp_path):
        copy, inside = load_model(place)
        assert_same_weights(model, copy)
        assert "".join(generate_text(copy, inside, "", 200)) == story, place


def test_transformers_agrees_after_three_conversions(tmp_path):
    save_model(tmp_path / "start", model_of(PLAIN))
    *_, place = round_the_circle(tmp_path / "start", ["gguf", "llama2c", "hf"], tmp_path)
    tokens = torch.arange(60)[None]
    with torch.no_grad():
        difference = load_model(place)[0](tokens) - logits_of_transformers(place, tokens)
    assert difference.abs().max() < 1e-4


def test_the_dtype_asked_for_is_written(tmp_path):
    save_model(tmp_path / "start", model_of(PLAIN))
    for to, dtype, wanted in (("meta", "bfloat16", torch.bfloat16), ("hf", "float16", torch.float16),
                              ("gguf", "bfloat16", torch.bfloat16), ("gguf", "q8_0", torch.float32),
                              ("llama2c", "int8", torch.float32)):
        target = tmp_path / f"{to}-{dtype}{SUFFIX.get(to, '')}"
        convert(tmp_path / "start", target, to, dtype)
        assert {w.dtype for w in load_model(target)[0].parameters()} == {wanted}, (to, dtype)
    plain, small = tmp_path / "plain.gguf", tmp_path / "gguf-q8_0.gguf"
    convert(tmp_path / "start", plain, "gguf")
    assert small.stat().st_size < 0.4 * plain.stat().st_size


def test_what_cannot_be_done_is_refused_before_a_file_appears(tmp_path):
    save_model(tmp_path / "start", model_of(LLAMA3))
    for to, dtype, message in (("onnx", None, "choose one of meta, hf, llama2c, gguf"), ("llama2c", None, "rope_theta"),
                               ("hf", "q8_0", "cannot be written as hf"), ("gguf", "int8", "cannot be written")):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "start", tmp_path / "x", to, dtype)
        assert not (tmp_path / "x").exists()
    for to in FORMS:
        with pytest.raises(FileExistsError, match="exists: choose another place"):
            convert(tmp_path / "start", tmp_path / "start", to)


CONVERT = "minillama.checkpoint.convert"
MUTANTS = [
    Mutant(CONVERT, "stored.read().to(dtype)", "stored.read()",
           lambda: in_a_folder(test_the_dtype_asked_for_is_written)),
    Mutant("minillama.checkpoint.meta", "value.storage_offset() * value.element_size()", "0",
           lambda: in_a_folder(test_every_form_gives_the_same_bits_back)),
    Mutant("minillama.checkpoint.gguf_llama", "dtypes.pop() if len(dtypes) == 1 else torch.float32", "torch.float32",
           lambda: in_a_folder(test_half_precision_and_a_byte_level_vocabulary_survive_too)),
]
