"""Tokenizers inside GGUF files: the same ids as the tokenizer that was put in."""

import pytest
from byte_texts import fuzzed
from checkpoints import in_a_folder
from mutants import Mutant
from test_tiktoken import tiny_file

from minillama.checkpoint.gguf import read_gguf, write_gguf
from minillama.generate import prompt_ids
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.gguf_vocab import gguf_vocab, read_gguf_vocab
from minillama.tokenizer.tiktoken import read_tiktoken


def through_a_file(tokenizer, folder):
    write_gguf(folder / "vocab.gguf", gguf_vocab(tokenizer), [])
    return read_gguf_vocab(read_gguf(folder / "vocab.gguf")[0])


def test_a_sentencepiece_vocabulary_comes_back_with_its_scores(tmp_path):
    tokenizer = train_bpe(["the cat and the hat and the bat"] * 20, 280)
    inside = through_a_file(tokenizer, tmp_path)
    assert inside.pieces == tokenizer.pieces
    assert (inside.bos_id, inside.eos_id, inside.unk_id) == (1, 2, 0)
    for text in fuzzed(200, seed=5):
        assert inside.encode(text) == tokenizer.encode(text), repr(text)


def test_a_byte_level_vocabulary_comes_back_with_its_joins(tmp_path):
    tokenizer = read_tiktoken(tiny_file())
    inside = through_a_file(tokenizer, tmp_path)
    assert inside.special_tokens == tokenizer.special_tokens
    assert (inside.bos_id, inside.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    for text in fuzzed(200, seed=5):
        assert inside.encode(text) == tokenizer.encode(text), repr(text)
    assert inside.encode("xyz") == [259]  # no joins lead to it
    inside.save(tmp_path / "tokenizer.json")  # what it is saved as
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("abcd bcd") == tokenizer.encode("abcd bcd")


def test_no_tokenizer_is_said_openly(tmp_path):
    assert through_a_file(None, tmp_path) is None and read_gguf_vocab({}) is None


def test_a_damaged_vocabulary_gets_one_clear_line():
    good = gguf_vocab(read_tiktoken(tiny_file()))
    tokens = "^the file: tokenizer.ggml.tokens is no list of str: "
    for change, message in (({"model": "t5"}, "model is 't5'"), ({"pre": "qwen2"}, "pre is 'qwen2'"),
                            ({"tokens": None}, tokens), ({"token_type": [1]}, "no list of int, \\d+ of them: "),
                            ({"merges": ["zz zz"]}, "joins to no token"), ({"merges": [1]}, "merges is no list")):
        settings = {**good, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
        with pytest.raises(ValueError, match=message):
            read_gguf_vocab(settings)


@pytest.mark.parametrize(("pre", "begins"), [
    ("llama-bpe", True), ("llama3", True), ("llama-v3", True), ("falcon3", True), ("midm-2.0", True),
    ("pixtral", True), ("smollm", False), ("gpt-2", False), ("default", False), (None, False)])
def test_a_header_that_is_silent_on_bos_has_llama_cpps_answer(pre, begins):
    """What llama.cpp sets by tokenizer.ggml.pre (llama-vocab.cpp); files of Llama 3 rarely say it themselves."""
    header = {**gguf_vocab(read_tiktoken(tiny_file())), "tokenizer.ggml.pre": pre}
    silent = {name: value for name, value in header.items() if name != "tokenizer.ggml.add_bos_token" and value}
    tokenizer = read_gguf_vocab(silent)
    assert prompt_ids(tokenizer, "ab")[:1] == ([tokenizer.bos_id] if begins else tokenizer.encode("ab")[:1])
    assert (tokenizer.bos_id in tokenizer.end_ids) is begins
    for said in (False, True):
        assert read_gguf_vocab({**silent, "tokenizer.ggml.add_bos_token": said}).begins is said


VOCAB = "minillama.tokenizer.gguf_vocab"
JOINS = test_a_byte_level_vocabulary_comes_back_with_its_joins
MUTANTS = [
    Mutant(VOCAB, "SAME.get(pre, pre) ==", "SAME.get(pre) ==",
           lambda: test_a_header_that_is_silent_on_bos_has_llama_cpps_answer("llama-bpe", True)),
    Mutant(VOCAB, 'whole_words = pre == "llama-bpe"', "whole_words = False", lambda: in_a_folder(JOINS)),
    Mutant("minillama.tokenizer.byte_bpe", "rank is not None and rank < index", "rank is not None",
           lambda: in_a_folder(JOINS)),
    Mutant(VOCAB, 'settings, "scores", float', 'settings, "token_type", int',
           lambda: in_a_folder(test_a_sentencepiece_vocabulary_comes_back_with_its_scores)),
]
