"""Byte-level BPE's parts: the byte alphabet, the joining and its undoing, each against the slow way of saying it."""

import random

import pytest
from mutants import Mutant
from test_tiktoken import tiny_file

from minillama.tokenizer.bpe import join_pairs
from minillama.tokenizer.byte_bpe import (
    BYTE_TO_CHARACTER,
    GPT2_WORDS,
    LLAMA3_WORDS,
    ByteBpeTokenizer,
    spelled,
)
from minillama.tokenizer.tiktoken import read_tiktoken


def slowly_joined(parts, rank_of):
    parts = list(parts)
    while True:
        ranks = [rank_of(left, right) for left, right in zip(parts, parts[1:], strict=False)]
        best = min((rank for rank in ranks if rank is not None), default=None)
        if best is None:
            return parts
        place = ranks.index(best)
        parts[place:place + 2] = [parts[place] + parts[place + 1]]


def test_the_heap_joins_what_looking_everywhere_joins():
    source = random.Random(0)
    for trial in range(300):
        ranks = {}
        for _ in range(source.randint(0, 12)):
            left, right = ("".join(source.choices("ab", k=source.randint(1, 3))).encode() for _ in range(2))
            ranks.setdefault((left, right), source.randint(0, 5))  # equal ranks too: the leftmost goes first
        text = "".join(source.choices("ab", k=source.choice([0, 1, 2, 3, 17]))).encode()
        parts = [bytes([byte]) for byte in text]

        def rank_of(left, right, ranks=ranks):
            return ranks.get((left, right))

        assert join_pairs(parts, rank_of) == slowly_joined(parts, rank_of), (trial, text, ranks)


def test_every_byte_has_a_printable_spelling_of_its_own():
    assert len(set(BYTE_TO_CHARACTER.values())) == 256
    assert all(character.isprintable() and not character.isspace() for character in BYTE_TO_CHARACTER.values())
    assert spelled("".join(BYTE_TO_CHARACTER[byte] for byte in range(256))) == bytes(range(256))
    assert spelled("\u0120the") == b" the" and spelled("\u4f60") is None


def test_words_put_together_are_the_text_and_spaces_go_with_what_follows():
    for words in (GPT2_WORDS, LLAMA3_WORDS):
        tokenizer = ByteBpeTokenizer({b"a": 0}, {}, [words])
        for text in ("", "a  b", "I'll  go\n\n  home 12345!", "\u4f60\u597d  \u3000x"):
            assert "".join(tokenizer.split(text)) == text
    assert tokenizer.split("I'LL  go 12345") == ["I", "'LL", " ", " go", " ", "123", "45"]


def test_joins_are_found_again_in_the_order_of_their_ranks():
    assert read_tiktoken(tiny_file()).merges() == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b" ", b"a"),
                                                   (b"c", b"d")]


def test_mistakes_are_named():
    tokenizer = ByteBpeTokenizer({b"a": 0, b"b": 1}, {"<end>": 2}, [GPT2_WORDS], eos="<end>")
    with pytest.raises(ValueError, match="no token for the byte 0x63"):
        tokenizer.encode("abc")
    with pytest.raises(ValueError, match="id 3 is out of range"):
        tokenizer.decode([3])
    with pytest.raises(ValueError, match="no begin token"):
        tokenizer.encode("a", bos=True)
    with pytest.raises(TypeError, match="a str, not bytes"):
        tokenizer.encode(b"a")
    with pytest.raises(ValueError, match="share an id"):
        ByteBpeTokenizer({b"a": 0, b"b": 0}, {}, [GPT2_WORDS])


MUTANTS = [
    Mutant("minillama.tokenizer.bpe", "len(parts[left]) + len(parts[right]) != length:", "False:",
           test_the_heap_joins_what_looking_everywhere_joins),
    Mutant("minillama.tokenizer.bpe", "consider(previous[left], left)", "pass",
           test_the_heap_joins_what_looking_everywhere_joins),
]
