"""Why a generated text ends is told: an end token, a stop text, the length asked for, or the context's end."""

import pytest
from mutants import Mutant
from test_generate import EOS, ByteTokenizer, Scripted

from minillama.generate import generate_text


def test_it_says_why_a_text_ends():
    def why(script, max_seq_len=1000, **settings):
        made = generate_text(Scripted(1, script, max_seq_len), ByteTokenizer(), **({"max_new_tokens": 9} | settings))
        with pytest.raises(StopIteration) as end:
            while True:
                next(made)
        return end.value.value

    assert [why([*b"hi", EOS]), why([EOS]), why([], max_new_tokens=0)] == ["end", "end", "length"]
    assert why(b"hi there!") == "length"
    assert why(b"one STOP two", stop=("STOP",), max_new_tokens=99) == "stop"
    assert [why(b"hi there!", 5), why([*b"hi", EOS], 3)] == ["context", "end"]


MUTANTS = [
    Mutant("minillama.generate", "made += 1", "made += 2", test_it_says_why_a_text_ends),
    Mutant("minillama.generate", '"end" if token in stop_ids else', "", test_it_says_why_a_text_ends),
]
