"""Byte-level BPE training: merges and ids are those of Hugging Face's tokenizers, files theirs and tiktoken's."""

import base64
import random

import pytest
from mutants import Mutant
from tokenizer_texts import random_text, real_text

from minillama.tokenizer import default_backend, load_tokenizer
from minillama.tokenizer.byte_bpe import GPT2_WORDS, LLAMA3_WORDS, spell_bytes
from minillama.tokenizer.byte_bpe_training import train_byte_bpe

TEXT = "low low low lower lowest  2023 20232023\n\n\n aaaa aaaaa bbb don't été été 猫猫\n"


def theirs(texts, vocab_size, words):
    """A trained tokenizers.Tokenizer with two special tokens behind its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle of byte-level training is tokenizers")
    parts, trainers = tokenizers.pre_tokenizers, tokenizers.trainers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = parts.Sequence([parts.Split(tokenizers.Regex(words), "isolated"),
                                              parts.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - 2, show_progress=False, min_frequency=0, special_tokens=[],
        initial_alphabet=parts.ByteLevel.alphabet()))
    return tokenizer


def check_merges(texts, vocab_size, pattern, words):
    import json
    oracle = theirs(texts, vocab_size, words)
    merges = [tuple(pair) for pair in json.loads(oracle.to_str())["model"]["merges"]]
    for backend in dict.fromkeys(("python", default_backend("ByteBpeTrainer"))):
        ours = train_byte_bpe(texts, vocab_size, pattern, backend=backend)
        assert [(spell_bytes(left), spell_bytes(right)) for left, right in ours.merges()] == merges
        assert {spell_bytes(token): index for token, index in ours.ids.items()} == oracle.get_vocab()
    return ours, oracle


@pytest.mark.parametrize(("pattern", "words"), [("gpt2", GPT2_WORDS), ("llama3", LLAMA3_WORDS),
                                                ("gpt4", LLAMA3_WORDS)])
def test_merges_and_ids_are_those_of_tokenizers(pattern, words):
    draw, text = random.Random(1), real_text(20_000).decode("utf-8", "ignore")
    ours, oracle = check_merges([text[:9000], text[9000:]], 700, pattern, words)
    for _ in range(100):
        text = random_text(draw)
        assert ours.encode(text) == oracle.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_small_texts_full_of_ties_are_merged_to_the_end_as_tokenizers_do():
    draw = random.Random(2)
    for _ in range(15):
        text = "".join(draw.choices("ab é", k=draw.randrange(4, 60)))
        check_merges([text, TEXT], 256 + 2 + 20, "gpt2", GPT2_WORDS)


def test_both_files_are_read_again_with_the_same_ids(tmp_path):
    tokenizer = train_byte_bpe([TEXT], 280)
    tokenizer.save(tmp_path / "tokenizer.json")
    rows = sorted(tokenizer.ids.items(), key=lambda item: item[1])
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in rows]  # Llama 3's file
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    from_json, from_ranks = load_tokenizer(tmp_path / "tokenizer.json"), load_tokenizer(tmp_path / "tokenizer.model")
    for text in (TEXT, "lowest 猫 2023", ""):
        assert from_json.encode(text) == from_ranks.encode(text) == tokenizer.encode(text)
    assert from_json.bos_id == tokenizer.bos_id == 278 and from_json.eos_id == tokenizer.eos_id == 279


@pytest.mark.parametrize(("size", "pattern", "said"), [(257, "gpt2", "257 is too low"), (999, "gpt2", "too high for"),
                                                       (300, "gpt5", "pattern 'gpt5' is not known: choose one of ")])
def test_what_cannot_be_trained_is_refused_with_the_reason(size, pattern, said):
    with pytest.raises(ValueError, match=said):
        train_byte_bpe(["low"], size, pattern)


PAGE = "minillama.tokenizer.byte_bpe_training"
MUTANTS = [
    Mutant(PAGE, "self.ids[pair[0]], self.ids[pair[1]]", "self.ids[pair[1]], self.ids[pair[0]]",
           test_small_texts_full_of_ties_are_merged_to_the_end_as_tokenizers_do),
    Mutant(PAGE, "enumerate([*byte_bpe_steps.FIRST_TOKENS", "enumerate([*byte_bpe_steps.FIRST_TOKENS[::-1]",
           test_small_texts_full_of_ties_are_merged_to_the_end_as_tokenizers_do),
]
