"""Laws of the Chinese stories: the same everywhere for a seed, exact in their bits, and Chinese."""

import hashlib
import math
from functools import partial

from mutants import Mutant

from lessons import chinese_stories

PINNED = "49ca6b38e0adaaa85712db0e121ef17aee34fd153d332bd514f87cdd5cf2f5c3"


def test_a_seed_gives_the_same_stories_on_every_machine():
    text = "\n".join(document.text for document in chinese_stories.documents(0, 100))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED
    told = chinese_stories.documents(0, 40)
    assert told == chinese_stories.documents(0, 100)[:40] != chinese_stories.documents(1, 40)


def test_a_story_read_back_has_the_bits_it_was_written_with_and_their_mean_is_the_entropy():
    told = chinese_stories.documents(7, 1500)
    for document in told[:300]:
        assert math.isclose(chinese_stories.GRAMMAR.log2_probability(document.text), -document.bits, abs_tol=1e-9)
    bits = [document.bits for document in told]
    mean = sum(bits) / len(bits)
    error = math.sqrt(sum((b - mean) ** 2 for b in bits)) / len(bits)
    assert abs(mean - chinese_stories.entropy_bits()) < 4 * error  # a normal variable strays so far once in 16,000


def test_nine_letters_in_ten_are_han_and_the_rest_digits_and_marks():
    text = "".join(document.text for document in chinese_stories.documents(1, 200))
    han = sum("\u4e00" <= letter <= "\u9fff" for letter in text)
    assert 0.8 < han / len(text) < 0.95
    assert {letter for letter in text if not "\u4e00" <= letter <= "\u9fff"} == set(
        "0123456789\uff0c\u3002\uff1a\uff01\u201c\u201d")


MUTANTS = [partial(Mutant, "lessons.chinese_stories")(
    'f"chinese stories {seed}"', '"chinese stories"', test_a_seed_gives_the_same_stories_on_every_machine)]
