"""Llama 3's tokenizer: llama.cpp's 47 vectors, and tiktoken itself on fuzzed text."""

import base64
import importlib.util
import time
from functools import lru_cache
from pathlib import Path

import pytest
from byte_texts import fuzzed
from mutants import Mutant

from minillama.tokenizer import load_tokenizer
from minillama.tokenizer.byte_bpe import LLAMA3_WORDS, ByteBpeTokenizer
from minillama.tokenizer.tiktoken import read_tiktoken


def llama3_file():
    spec = importlib.util.find_spec("llama_models")
    path = Path(spec.origin).parent / "llama3" / "tokenizer.model" if spec else None
    if path is None or not path.is_file():
        pytest.skip("needs Llama 3's tokenizer file: pip install -r tests/oracles.txt")
    return path


@lru_cache
def llama3():
    return load_tokenizer(llama3_file())


@lru_cache
def oracle():
    tiktoken = pytest.importorskip("tiktoken", reason="the oracle: pip install -r tests/oracles.txt")
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, llama3_file().open("rb"))}
    return tiktoken.Encoding("llama3", pat_str=LLAMA3_WORDS, mergeable_ranks=ranks,
                             special_tokens=llama3().special_tokens)


def tiny_file():
    """All single bytes, and a few joins: "bc" before "ab", "abc" reachable, "xyz" not."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"bc", b"ab", b"abc", b"xyz", b" a", b"cd"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def assert_equal_to_tiktoken(count, seed, backend=None):
    ours, theirs = llama3(), oracle()
    if backend:
        ours = ByteBpeTokenizer(ours.ids, ours.special_tokens, ours.words, backend=backend)
    for text in fuzzed(count, seed, assigned=False):
        ids = theirs.encode_ordinary(text)
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("backend", [None, "python"])
def test_fuzzed_text_of_every_plane_has_the_ids_of_tiktoken(backend):
    assert_equal_to_tiktoken(1000, 1, backend)


@pytest.mark.long
def test_a_hundred_thousand_fuzzed_texts_have_the_ids_of_tiktoken():
    assert_equal_to_tiktoken(100_000, 2)
    assert_equal_to_tiktoken(10_000, 3, "python")


def test_all_47_vectors_of_llama_cpp_are_met(weights):
    texts = (weights / "ggml-vocab-llama-bpe.gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    wanted = (weights / "ggml-vocab-llama-bpe.gguf.out").read_text().split("\n")
    assert len(texts) == 47
    for text, ids in zip(texts, wanted[:47], strict=True):
        assert llama3().encode(text) == [int(i) for i in ids.split()], repr(text)


@pytest.mark.parametrize("backend", [None, "python"])
def test_the_lowest_rank_is_joined_first_and_whole_words_before_any_joining(backend):
    read = read_tiktoken(tiny_file())
    tokenizer = ByteBpeTokenizer(read.ids, {}, read.words, backend=backend)
    assert tokenizer.encode("abc") == [258]  # a word of the table, though a + bc is joined first
    assert tokenizer.encode("abcd") == [258, ord("d")]  # bc has the lower rank, then a + bc
    assert tokenizer.encode("xyz") == [259] and tokenizer.encode("wxyz") == [*b"wxyz"]  # no joins lead there
    assert tokenizer.encode("bcd") == [256, ord("d")]  # not b + cd
    assert tokenizer.encode("ab") == [257] and tokenizer.encode("") == []


def test_special_tokens_come_only_on_request():
    tokenizer = read_tiktoken(tiny_file())
    begin, text = tokenizer.bos_id, "<|begin_of_text|>abc<|eot_id|>"
    assert begin == 262 and tokenizer.vocab_size == 262 + 256
    assert begin not in tokenizer.encode(text)
    assert tokenizer.encode("abc", bos=True, eos=True) == [begin, 258, tokenizer.eos_id]
    assert tokenizer.encode(text, allowed_special="all") == [begin, 258, tokenizer.special_tokens["<|eot_id|>"]]
    assert tokenizer.encode(text, allowed_special=["<|begin_of_text|>"])[:2] == [begin, 258]
    assert tokenizer.decode([begin, 258, tokenizer.eos_id]) == "abc"
    assert tokenizer.id_to_piece(begin) == "<|begin_of_text|>"
    with pytest.raises(ValueError, match="no special token"):
        tokenizer.encode(text, allowed_special=["<s>"])


def test_a_character_is_shown_when_it_is_whole():
    tokenizer = read_tiktoken(tiny_file())
    decoder = tokenizer.decoder()
    shown = [decoder.push(byte) for byte in "a\U0001f999b".encode()] + [decoder.flush()]
    assert shown == ["a", "", "", "", "\U0001f999", "b", ""]
    decoder = tokenizer.decoder()
    assert [decoder.push(0xE4), decoder.push(0xBD), decoder.push(tokenizer.eos_id)] == ["", "", "\ufffd"]
    assert tokenizer.decode([0xE4, 0xBD, ord("a")]) == b"\xe4\xbda".decode(errors="replace")


def test_one_word_of_a_hundred_thousand_letters_takes_no_square_of_time():
    tokenizer = read_tiktoken(tiny_file())
    started = time.process_time()
    assert tokenizer.encode("abc" * 40_000 + "d") == [258] * 40_000 + [ord("d")]
    assert time.process_time() - started < 10  # a pair scan for each join would take an hour


def test_a_damaged_file_gets_one_clear_line(tmp_path):
    lines = tiny_file().splitlines(keepends=True)
    for content, message in ((b"".join(lines[:200]), "no token for the byte 0xC8"),
                             (b"".join(lines[:-2] + lines[-1:]), "without a gap"),
                             (b"".join([*lines, b"YWI= 262\n"]), "line 263 .* not a new token"),
                             (b"".join([*lines, b"!!!! 262\n"]), "line 263 .* not base64"),
                             (b"".join([*lines, b"YWJk -1\n"]), "line 263")):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path / "tokenizer.model")


def test_the_file_is_saved_as_it_was_read(tmp_path):
    (tmp_path / "a").write_bytes(tiny_file())
    load_tokenizer(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == tiny_file()


@pytest.mark.parametrize(("count", "owner"), [(50256, "GPT-2"), (151643, "Qwen"), (199998, "GPT-4o"),
                                              (200000, "Llama 4")])
def test_a_file_of_another_models_ranks_is_not_read_in_llama_3s_words(count, owner):
    """Such a file does not say how text is cut: Qwen and GPT-4o cut it otherwise, and every number in it would do."""
    rows = [bytes([byte]) for byte in range(256)] + [b"ab%d" % rank for rank in range(256, count)]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(rows)]
    with pytest.raises(ValueError, match=f"{count} ranks are those of {owner}, whose text is not cut into words as"):
        read_tiktoken(b"".join(lines))
    assert count > 60000 or read_tiktoken(b"".join(lines[:-1])).ids_are_ranks


def check_owner():
    test_a_file_of_another_models_ranks_is_not_read_in_llama_3s_words(50256, "GPT-2")


BYTE_BPE = "minillama.tokenizer.byte_bpe"


def check_joining():
    test_the_lowest_rank_is_joined_first_and_whole_words_before_any_joining("python")


MUTANTS = [
    Mutant("minillama.tokenizer.tiktoken", "FOREIGN.get(len(ids))", "FOREIGN.get(-len(ids))", check_owner),
    Mutant("minillama.tokenizer.bpe", "heapq.heappush(heap, (rank,", "heapq.heappush(heap, (-rank,", check_joining),
    Mutant(BYTE_BPE, "if self.whole_words and word in self.ids:", "if False:", check_joining),
    Mutant("minillama.tokenizer.added_tokens", "wanted = self._words\n", "wanted = list(self.added.values())\n",
           test_special_tokens_come_only_on_request),
    Mutant(BYTE_BPE, "return self.flush() + (added.text", "return '' + (added.text",
           test_a_character_is_shown_when_it_is_whole),
    Mutant("minillama.tokenizer.tiktoken", "len(ids) + n for n", "n for n", test_special_tokens_come_only_on_request),
]
