"""Letters, numbers and spaces are tiktoken's, in the table, in C++, and in the patterns that `regex` compiles."""

import pytest
import regex
from mutants import Mutant

from minillama.tokenizer.byte_bpe import GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS, ByteBpeTokenizer
from minillama.tokenizer.character_classes import LETTER, NUMBER, PROPERTIES, SPACE, pin_classes, ranges

EVERYTHING = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))


def class_of():
    """{code point: class}"""
    return {code: kind for first, last, kind in ranges() for code in range(first, last + 1)}


def test_the_table_is_what_tiktoken_takes_for_letters_numbers_and_spaces():
    tiktoken = pytest.importorskip("tiktoken", reason="the oracle: pip install -r tests/oracles.txt")
    bytes_alone, found = {bytes([byte]): byte for byte in range(256)}, {}
    for kind, name in PROPERTIES.items():
        oracle = tiktoken.Encoding("bytes", pat_str=f"{name}+", mergeable_ranks=bytes_alone, special_tokens={})
        matched = bytes(oracle.encode_ordinary(EVERYTHING)).decode()  # what no pattern matches has no ids
        found |= dict.fromkeys(map(ord, matched), kind)
    assert found == class_of()


def test_a_pattern_takes_the_characters_of_the_table_whatever_unicode_regex_has():
    classes = class_of()
    for kind, name in PROPERTIES.items():
        expected = [character for character in EVERYTHING if classes.get(ord(character)) == kind]
        assert regex.findall(pin_classes(name), EVERYTHING) == expected
    none = regex.findall(pin_classes(r"[^\s\p{L}\p{N}]"), EVERYTHING)
    assert none == [character for character in EVERYTHING if ord(character) not in classes]


def test_ranges_are_in_order_and_apart():
    for kind in (LETTER, NUMBER, SPACE):
        edges = [edge for first, last, of in ranges() if of == kind for edge in (first, last + 1)]
        assert edges == sorted(set(edges))


def check_both_cut_alike(words, characters):
    """Each character beside a letter, a number, a space and a mark: the words of C++ are those of Python."""
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    if ByteBpeTokenizer(bytes_alone, {}, words).backend != "cpp":
        pytest.skip("the compiled core is not built here")
    ours, plain = (ByteBpeTokenizer(bytes_alone, {}, words, backend=backend) for backend in ("cpp", "python"))
    for start in range(0, len(characters), 1 << 14):
        text = "".join(f"a{character}a {character}1{character}. {character} {character}{character}\n"
                       for character in characters[start:start + (1 << 14)])
        assert ours.split(text) == plain.split(text)


def test_both_backends_cut_alike_at_ten_thousand_characters():
    for words in ([LLAMA3_WORDS], [GPT2_WORDS], [SINGLE_DIGITS, GPT2_WORDS]):
        check_both_cut_alike(words, EVERYTHING[:0x500] + EVERYTHING[0x500::97])


@pytest.mark.long
@pytest.mark.parametrize("words", [LLAMA3_WORDS, GPT2_WORDS, SINGLE_DIGITS])
def test_both_backends_cut_at_every_character_alike(words):
    check_both_cut_alike([words], EVERYTHING)


MUTANTS = [
    Mutant("minillama.tokenizer.character_classes", "ours - theirs, theirs - ours", "ours - theirs, ours - theirs",
           test_a_pattern_takes_the_characters_of_the_table_whatever_unicode_regex_has),
    Mutant("minillama.tokenizer.character_classes", "runs[-1][1] == code - 1", "runs[-1][1] < code",
           test_a_pattern_takes_the_characters_of_the_table_whatever_unicode_regex_has),
    Mutant("minillama.tokenizer.unicode_script", "int(last or first, 16)", "int(first, 16)",
           test_the_table_is_what_tiktoken_takes_for_letters_numbers_and_spaces),
]
