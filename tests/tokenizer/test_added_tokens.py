"""Added tokens: found as the tokenizers library finds them, special ones only on request, contradictions refused."""

import json
import pickle
import random

import pytest
from mutants import Mutant

from minillama.tokenizer import train_bpe
from minillama.tokenizer.added_tokens import AddedToken, TokenSettings
from minillama.tokenizer.byte_bpe import BYTE_TO_CHARACTER
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.tokenizer_json import read_tokenizer_json, sentencepiece_json

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
FLAGS = ("lstrip", "rstrip", "single_word")
ALL_FLAGS = (*FLAGS, "normalized")
PIECES = ["<a>", "<a>b", "tool", "\u4f60", "</a>", "b<a>", "x<", "7x"]


def of_bytes(*entries):
    """A tokenizer.json of single bytes with added tokens: (content, special, *names of flags)."""
    added = [{"id": 256 + n, "content": text, "special": special, **{flag: flag in flags for flag in ALL_FLAGS}}
             for n, (text, special, *flags) in enumerate(entries)]
    model = {"type": "BPE", "vocab": {BYTE_TO_CHARACTER[byte]: byte for byte in range(256)}, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": BYTE_LEVEL,
                       "post_processor": None, "decoder": BYTE_LEVEL, "model": model})


def test_words_are_found_as_the_library_finds_them():
    tokenizers = pytest.importorskip("tokenizers")
    rng = random.Random(5)
    for flags in ((), ("lstrip",), ("rstrip",), ("single_word",), ("lstrip", "rstrip"), FLAGS):
        text = of_bytes(("<a>", False, *flags), ("<a>b", False, *flags), ("tool", False, *flags), ("\u4f60", False))
        ours, theirs = read_tokenizer_json(text.encode()), tokenizers.Tokenizer.from_str(text)
        for _ in range(200):
            words = rng.choices(["<a>", "<a>b", "tool", "\u4f60", " ", "  ", "x", "\n", "_", "<", "toolx", "7"], k=9)
            sample = "".join(words)
            ids = theirs.encode(sample).ids
            assert ours.encode(sample) == ids, (flags, sample)
            if not flags:
                assert ours.decode(ids) == sample == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_that_overlap_are_found_in_the_librarys_order(seed):
    """The longest of those that begin leftmost, and a normalized one only in what the others have left."""
    tokenizers = pytest.importorskip("tokenizers")
    rng = random.Random(seed)
    for _ in range(12):
        flags = [[flag for flag in ALL_FLAGS if rng.random() < 0.35] for _ in PIECES]
        text = of_bytes(*((piece, rng.random() < 0.5, *own) for piece, own in zip(PIECES, flags, strict=True)))
        ours, theirs = read_tokenizer_json(text.encode()), tokenizers.Tokenizer.from_str(text)
        for _ in range(40):
            sample = "".join(rng.choices([*PIECES, " ", "\t", "x", "\n", "_", "<", "7", "\u3000"], k=6))
            assert ours.encode(sample, allowed_special="all") == theirs.encode(sample).ids, (text[:900], sample)


def test_a_word_that_stands_alone_is_not_found_inside_another_by_a_sentencepiece_vocabulary():
    tokenizers = pytest.importorskip("tokenizers")
    old = train_bpe(["the cat and the hat"] * 20, 280)
    old.obey(TokenSettings((AddedToken("Xy", 280, False, single_word=True),), prefix="first"))
    text = sentencepiece_json(old)
    ours, theirs = read_tokenizer_json(text), tokenizers.Tokenizer.from_str(text.decode())
    for sample in ("the Xy cat", "the _Xy cat", "theXy"):
        assert ours.encode(sample) == theirs.encode(sample, add_special_tokens=False).ids, sample


def test_a_special_token_comes_on_request_and_shows_on_request():
    tokenizer = read_tokenizer_json(of_bytes(("<s>", True), ("<think>", False)).encode())
    assert tokenizer.encode("<s>a<think>") == [*b"<s>a", 257]
    ids = tokenizer.encode("<s>a<think>", allowed_special="all")
    assert ids == [256, ord("a"), 257] and tokenizer.encode("<s>", allowed_special=["<s>"]) == [256]
    assert tokenizer.decode(ids) == "a<think>" and tokenizer.decode(ids, show_special=True) == "<s>a<think>"
    sentencepiece = train_bpe(["the cat and the hat"] * 20, 280)
    assert sentencepiece.decode([1, *sentencepiece.encode("the")], show_special=True) == "<s> the"
    with pytest.raises(ValueError, match="'<think>' is no special token"):
        tokenizer.encode("a", allowed_special=["<think>"])


def test_tokens_behind_the_vocabulary_join_it_and_rows_without_a_token_show_nothing():
    tokenizer = train_bpe(["the cat and the hat"] * 20, 280)
    tokenizer.obey(TokenSettings((AddedToken("<tool>", 284, False), AddedToken("<|end|>", 281)), eos="<|end|>",
                                 add_bos=False, ends=frozenset({7})))
    assert tokenizer.vocab_size == 285 and tokenizer.eos_id == 281 and tokenizer.end_ids == {7, 281}
    the = tokenizer.encode("the")
    assert tokenizer.encode("the<tool>the<|end|>")[:len(the) + 1] == [*the, 284]
    assert tokenizer.encode("the<|end|>", allowed_special="all") == [*the, 281]
    assert tokenizer.decode([*the, 282, 284, 281]) == "the<tool>"
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("the<tool>the") == tokenizer.encode("the<tool>the") and again.end_ids == {7, 281}
    with pytest.raises(ValueError, match="id 285 is out of range"):
        tokenizer.decode([285])
    tokenizer.n_rows = 288
    assert tokenizer.decode([*the, 285, 287]) == "the"
    with pytest.raises(ValueError, match="id 288 is out of range"):
        tokenizer.decode([288])


@pytest.mark.parametrize(("prefix", "spaces"), [("never", (0, 0)), ("first", (1, 0)), ("always", (1, 1)),
                                                ("sentencepiece", (1, 1))])
def test_the_space_in_front_comes_where_the_settings_say(prefix, spaces):
    tokenizer = train_bpe(["the cat and the hat"] * 20, 280)
    tokenizer.obey(TokenSettings((AddedToken("<tool>", 280, False),), prefix=prefix))
    pieces = "".join(tokenizer.id_to_piece(index) for index in tokenizer.encode("the<tool>the"))
    assert pieces == "\u2581" * spaces[0] + "the<tool>" + "\u2581" * spaces[1] + "the"
    for text in ("the cat", " the", "cat"):
        assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(" " * (prefix in ("first", "always")))
        ids = tokenizer.encode(text, continues=True)
        decoder = tokenizer.decoder(space_in_front=tokenizer.puts_space(text, continues=True))
        assert "".join(map(decoder.push, ids)) + decoder.flush() == text


def test_bos_is_put_in_front_and_ends_a_text_only_where_the_files_do_not_deny_it():
    tokenizer = train_bpe(["the cat and the hat"] * 20, 280)
    assert tokenizer.begins and tokenizer.end_ids == {1, 2}
    assert not tokenizer.obey(TokenSettings(add_bos=False)).begins and tokenizer.end_ids == {2}


def test_tokens_that_contradict_the_vocabulary_are_refused():
    for added, message in ((AddedToken("<s>", 5), "has the id 5, and 1 in the vocabulary"),
                           (AddedToken("<x>", 1), "'<s>' \\(1\\) and '<x>' \\(1\\) contradict")):
        with pytest.raises(ValueError, match=message):
            train_bpe(["the cat and the hat"] * 20, 280).obey(TokenSettings((added,)))
    with pytest.raises(ValueError, match="the eos token is '<nothing>', which is not in the vocabulary"):
        train_bpe(["the cat and the hat"] * 20, 280).obey(TokenSettings(eos="<nothing>"))


def test_a_batch_is_each_of_its_texts_by_any_number_of_threads():
    texts = ["low lower", "", "<s> é猫", "lowest " * 50] * 5
    for tokenizer in (train_bpe(["low lower lowest"], 275), read_tokenizer_json(of_bytes(("<s>", True)).encode()),
                      train_sentencepiece(["low lower lowest"], 11, "char")):
        for threads in (1, 3, 40):
            assert tokenizer.encode_batch(texts, threads) == [tokenizer.encode(text) for text in texts]
    ids = tokenizer.encode_batch(texts, 2, bos=True, eos=True)
    assert ids == [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    for threads in (0, 1.5, True):
        with pytest.raises(ValueError, match="threads is"):
            tokenizer.encode_batch(texts, threads)


def check_overlap():
    test_tokens_that_overlap_are_found_in_the_librarys_order(0)


MODULE, FOUND = "minillama.tokenizer.added_tokens", test_words_are_found_as_the_library_finds_them
MUTANTS = [
    Mutant(MODULE, "while token.lstrip and", "while False and", FOUND),
    Mutant(MODULE, "pool.map(partial(self.encode, **options), texts)", "pool.map(self.encode, texts)",
           test_a_batch_is_each_of_its_texts_by_any_number_of_threads),
    Mutant(MODULE, "key=len, reverse=True", "key=len", FOUND),
    Mutant(MODULE, "text[max(start - 1, 0):start] + text[end:end + 1]", "text[end:end + 1]", FOUND),
    Mutant(MODULE, "for normalized in (False, True):", "for normalized in (True, False):", check_overlap),
    Mutant("minillama.tokenizer.tokenizer_json", "added[piece].special or added[piece].single_word",
           "added[piece].special",
           test_a_word_that_stands_alone_is_not_found_inside_another_by_a_sentencepiece_vocabulary),
    Mutant(MODULE, "wanted = self._words\n", "wanted = list(self.added.values())\n",
           test_a_special_token_comes_on_request_and_shows_on_request),
    Mutant(MODULE, "self.bos_id if self.begins else None", "self.bos_id",
           test_bos_is_put_in_front_and_ends_a_text_only_where_the_files_do_not_deny_it),
    Mutant(MODULE, "if known not in (None, token.id) or", "if",
           test_tokens_that_contradict_the_vocabulary_are_refused),
]
