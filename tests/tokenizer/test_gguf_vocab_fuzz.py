"""The tokenizer's settings in a GGUF header, changed at random: obeyed, refused by name, or without influence."""

import random
from collections import Counter

import pytest
from mutants import Mutant
from test_gguf_blocks import package
from test_gguf_llama_settings import words_of
from test_huggingface_settings import mutated
from test_tiktoken import tiny_file
from test_token_settings_fuzz import behaviour, outcome_of

from minillama.system.settings import check_known
from minillama.tokenizer import train_bpe
from minillama.tokenizer.gguf_vocab import gguf_vocab, read_gguf_vocab
from minillama.tokenizer.tiktoken import read_tiktoken

VALUES = [True, False, 0, 1, 3, 2**32 - 1, -1, 2**40, 0.0, 1.5, float("nan"), "", "llama", "gpt2", "default",
          "llama-bpe", "smollm", "gpt-2", "{{ 1 }}", [], [0], [1, 2], ["a"], [0.0], [True], "no_vocab", "no"]
INERT = ("tokenizer.chat_template.", "tokenizer.chat_templates", "tokenizer.huggingface.json", "tokenizer.ggml.fim_",
         *(f"tokenizer.ggml.{name}" for name in (
             "seperator_token_id", "cls_token_id", "mask_token_id", "prefix_token_id", "suffix_token_id",
             "middle_token_id", "token_type_count")))
UNREAD = {"llama": ("tokenizer.ggml.merges", "tokenizer.ggml.pre"), "gpt2": ("tokenizer.ggml.scores",)}  # by llama.cpp
USUAL = {"llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}, "gpt2": {}}


def read(settings):
    check_known(settings, "p", "GGUF")
    tokenizer = read_gguf_vocab(settings, "p")
    if tokenizer is None:
        raise ValueError("p: told as a file without a tokenizer by every command")
    return tokenizer


def without_influence(settings, kind, name, value):
    key = name.removeprefix("tokenizer.ggml.")
    said = USUAL[kind].get(key, settings.get(name))
    none = key.endswith("_token_id") and value in (-1, 2**32 - 1) and said is None
    if key == "unknown_token_id":  # all bytes have tokens: nothing is unknown, any token may stand for it
        return kind == "gpt2" or value in (said, -1, 2**32 - 1)
    none = none or kind == "llama" and key in ("eot_token_id", "eom_token_id") and value == 1  # bos ends a text anyway
    return name.startswith(INERT) or name in UNREAD[kind] or value == said or none or (
        not value and said is None)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_mutated_setting_of_the_tokens_is_ignored_unless_it_is_harmless(kind, count):
    tokenizer = train_bpe(["the cat and the hat"] * 20, 280) if kind == "llama" else read_tiktoken(tiny_file())
    settings, draw, outcomes = gguf_vocab(tokenizer), random.Random(18), Counter()
    usual = behaviour(read(settings))
    names = sorted({*(name for name in words_of(package().Keys) if name.startswith("tokenizer.")), *settings})
    for _ in range(count):
        name, value = mutated(draw, names, names, VALUES)
        outcome = outcome_of(lambda name=name, value=value: read({**settings, name: value}), usual)
        outcomes[outcome] += 1
        if outcome == "ignored":
            assert without_influence(settings, kind, name, value), (name, value)
    assert outcomes["refused"] > count // 2 and min(outcomes["obeyed"], outcomes["ignored"]) > 0, outcomes


def test_an_id_that_names_no_token_is_refused_and_a_list_without_its_kind():
    settings = gguf_vocab(train_bpe(["the cat and the hat"] * 20, 280))
    for name, value, message in (("eos_token_id", 280, "eos_token_id is 280, and there are 280 tokens"),
                                 ("unknown_token_id", 7, "unknown_token_id is 7, whose token_type is another's"),
                                 ("add_space_prefix", 0, "add_space_prefix is 0: expected bool"),
                                 ("model", ["llama"], "model is .'llama'.: known are"),
                                 ("token_type", [0] * 280, "with token_type 1 to 6")):
        with pytest.raises(ValueError, match=message):
            read_gguf_vocab({**settings, f"tokenizer.ggml.{name}": value})
    del settings["tokenizer.ggml.model"]
    with pytest.raises(ValueError, match="model is 'no_vocab'"):
        read_gguf_vocab(settings)


MUTANTS = [
    Mutant("minillama.tokenizer.gguf_vocab", "elif which in ids and not 0 <= ids[which] < len(tokens)",
           "elif which in ids and False", test_an_id_that_names_no_token_is_refused_and_a_list_without_its_kind),
]
