"""Laws of csrc/cpu/bpe_vocabulary.cpp, how the compiled tokenizer loads a vocabulary: against the plain Python."""

import pytest
from mutants import Mutant
from test_compiled import built, check_equal_encoding, need_core
from tokenizer_texts import hand_made

from minillama.tokenizer.sentencepiece import Piece


@built
@pytest.mark.parametrize("odd", [0, 1])
def test_any_two_characters_may_join_the_first_and_the_last_of_ascii_too(odd):
    """Half of all pairs are pieces, so that whatever is taken for another pair shows."""
    need_core()
    letters = [chr(code) for code in (1, 9, 31, 33, 64, 97, 126, 127, 128, 0xFF, 0x2581, 0x1F999)]
    pairs = [a + b for i, a in enumerate(letters) for j, b in enumerate(letters) if (i * j + i + j) % 2 == odd]
    pieces = [Piece(text, -1.0) for text in letters + pairs]
    check_equal_encoding(hand_made(pieces), [a + b for a in letters for b in letters])


MUTANTS = [
    Mutant("minillama.tokenizer.compiled", "encode(text, self._dummy_prefix, True)", "encode(text[:1], False, True)",
           lambda: test_any_two_characters_may_join_the_first_and_the_last_of_ascii_too(1)),
]
