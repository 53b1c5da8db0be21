"""Laws of the stories: the same everywhere for a seed, exact in their bits, and sensible to read."""

import hashlib
import math
import re

import pytest
from mutants import Mutant

from minillama.corpus import stories

PINNED = "90c0a31f6ce142254e8d6e73a5bbcb7d112f833c346a762b25243888db93c42f"


def test_a_seed_gives_the_same_stories_on_every_machine():
    text = "\n".join(document.text for document in stories.documents(0, 100))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED
    assert stories.documents(0, 40) == stories.documents(0, 100)[:40] != stories.documents(1, 40)


def test_entropy_is_the_mean_of_the_documents_bits():
    bits = [document.bits for document in stories.documents(7, 4000)]
    mean = sum(bits) / len(bits)
    error = math.sqrt(sum((b - mean) ** 2 for b in bits)) / len(bits)
    assert abs(mean - stories.GRAMMAR.entropy_bits()) < 4 * error  # a normal variable strays so far once in 16,000


def test_a_story_read_back_has_the_bits_it_was_written_with():
    for document in stories.documents(3, 300):
        assert stories.GRAMMAR.log2_probability(document.text) == pytest.approx(-document.bits, abs=1e-9)


def test_a_story_that_forgets_its_toy_is_outside_the_language():
    text = next(d.text for d in stories.documents(0, 50) if "And there was the" in d.text)
    toy = re.search(r"there was the (\w+)!", text)[1]
    other = "kite" if toy != "kite" else "drum"
    with pytest.raises(ValueError, match="not in the language"):
        stories.GRAMMAR.log2_probability(text.replace(f"there was the {toy}", f"there was the {other}"))


def test_stories_are_short_varied_and_spelt_like_english():
    texts = [document.text for document in stories.documents(11, 2000)]
    assert len(set(texts)) == len(texts)
    assert len({text.split()[0] for text in texts}) >= len(stories.RULES["story"])
    for text in texts:
        assert 4 <= len(re.findall(r"[.!?]+", text)) <= 9 and "{" not in text and "|" not in text
        assert not re.search(r"  |\ba [aeiou]|\ban [^aeiou]|[.!?] [a-z](?<!said)", re.sub(r'[!?.]" \w', "", text)), text
    words = {word.lower() for text in texts for word in re.findall("[A-Za-z]+", text)}
    assert 150 <= len(words) <= 300
    assert any(re.search(r"\d\d", text) for text in texts)


MUTANTS = [
    Mutant("minillama.corpus.stories", 'f"stories {seed}"', "seed",
           test_a_seed_gives_the_same_stories_on_every_machine),
    Mutant("minillama.corpus.grammar", "choice.entropy + expected(rest, made", "expected(rest, made",
           test_entropy_is_the_mean_of_the_documents_bits),
]
