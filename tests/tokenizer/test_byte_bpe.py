"""Byte-level BPE's parts: the byte alphabet, the joining and its undoing, each against the slow way of saying it."""

import pickle
import random
import threading

import pytest
from byte_texts import fuzzed
from mutants import Mutant
from test_tiktoken import tiny_file

from minillama.tokenizer import compiled, default_backend
from minillama.tokenizer.bpe import join_pairs
from minillama.tokenizer.byte_bpe import (
    BYTE_TO_CHARACTER,
    GPT2_WORDS,
    LLAMA3_WORDS,
    SINGLE_DIGITS,
    ByteBpeTokenizer,
    read_spelling,
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
    assert read_spelling("".join(BYTE_TO_CHARACTER[byte] for byte in range(256))) == bytes(range(256))
    assert read_spelling("\u0120the") == b" the" and read_spelling("\u4f60") is None


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


# ---- the compiled core --------------------------------------------------------------------------------------------

built = pytest.mark.skipif(default_backend() != "cpp", reason=f"the compiled core is not built: {compiled.BUILD}")
PATTERNS = ([], [GPT2_WORDS], [LLAMA3_WORDS], [SINGLE_DIGITS], [SINGLE_DIGITS, GPT2_WORDS])


def random_vocabulary(source):
    """Arguments of a tokenizer: all bytes in any order, and joins of "a", "b", "c" and what they make."""
    tokens, merges = [bytes([byte]) for byte in range(256)], {}
    for _ in range(source.randint(0, 60)):
        pair = tuple(source.choice(tokens[97:100] + tokens[256:]) for _ in range(2))
        merges.setdefault(pair, len(merges))
        if pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
    ids = {token: index for index, token in enumerate(source.sample(tokens, len(tokens)))}
    return ids, {}, source.choice(PATTERNS), source.choice([None, merges]), source.random() < 0.5


def random_text(source):
    """Short words and long ones: more than 24 bytes are not remembered, more than 64 are joined by a heap."""
    letters = ["a", "b", "c", "abc", " ", "  ", "1", "'s", "'LL", "\n", " \n ", "\u4f60", "\u3000", "!"]
    return "".join(source.choice(letters) * source.choice([1, 1, 2, 30, 70]) for _ in range(source.randint(0, 12)))


def check_both_backends(seed, vocabularies=60):
    source = random.Random(seed)
    for _ in range(vocabularies):
        arguments = random_vocabulary(source)
        ours, plain = (ByteBpeTokenizer(*arguments, backend=backend) for backend in ("cpp", "python"))
        for text in (*(random_text(source) for _ in range(20)), *fuzzed(5, source.random(), assigned=False)):
            assert ours.encode(text) == plain.encode(text), (text, arguments[2:])


@built
@pytest.mark.parametrize("seed", range(3))
def test_both_backends_give_the_same_ids(seed):
    check_both_backends(seed)


@built
def test_both_backends_name_a_missing_byte_alike_and_take_any_id():
    said = []
    for backend in ("cpp", "python"):
        tokenizer = ByteBpeTokenizer({b"a": 0, b"b": 2**31 - 1}, {}, [GPT2_WORDS], backend=backend)
        assert tokenizer.encode("abba") == [0, 2**31 - 1, 2**31 - 1, 0]
        with pytest.raises(ValueError) as caught:
            tokenizer.encode("abc")
        said.append(str(caught.value))
    assert said[0] == said[1] and "0x63" in said[0]


@pytest.mark.parametrize(("pattern", "pieces"), [
    (r"[ab]+", ["x", "abb", "xy", "a"]), (r"(a|b)+", ["x", "abb", "xy", "a"]), (r"(?P<name>a)b", ["x", "ab", "bxya"])])
def test_a_text_is_cut_into_matches_and_what_lies_between_whatever_groups_a_pattern_has(pattern, pieces):
    tokenizer = ByteBpeTokenizer({bytes([byte]): byte for byte in range(256)}, {}, [pattern])
    assert tokenizer.split("xabbxya") == pieces
    assert tokenizer.decode(tokenizer.encode("xabbxya")) == "xabbxya"


@built
def test_a_pattern_that_the_core_does_not_know_is_pythons():
    tokenizer = ByteBpeTokenizer({b"a": 0, b"aa": 1}, {}, ["aa?"])
    assert tokenizer.backend == "cpp" and tokenizer.encode("aaa") == [1, 0]


@built
def test_a_tokenizer_can_be_pickled_and_used_by_several_threads():
    ids = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257}
    tokenizer = ByteBpeTokenizer(ids, {}, [LLAMA3_WORDS])
    texts = list(fuzzed(40, seed=9)) * 3
    expected = [tokenizer.encode(text) for text in texts]
    assert [pickle.loads(pickle.dumps(tokenizer)).encode(text) for text in texts[:5]] == expected[:5]
    found = [None] * 4

    def work(place):
        found[place] = [tokenizer.encode(text * 50) for text in texts]

    workers = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [[tokenizer.encode(text * 50) for text in texts]] * 4


MUTANTS = [
    Mutant("minillama.tokenizer.byte_bpe", "match[0]]", "*match.groups()]",
           lambda: test_a_text_is_cut_into_matches_and_what_lies_between_whatever_groups_a_pattern_has(
               r"(a|b)+", ["x", "abb", "xy", "a"])),
    Mutant("minillama.tokenizer.bpe", "len(parts[left]) + len(parts[right]) != length:", "False:",
           test_the_heap_joins_what_looking_everywhere_joins),
    Mutant("minillama.tokenizer.bpe", "consider(previous[left], left)", "pass",
           test_the_heap_joins_what_looking_everywhere_joins),
]
