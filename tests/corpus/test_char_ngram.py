"""Laws of the character baselines: probabilities sum to one and equal a slow count by hand."""

import lzma
import math
import random

import numpy as np
import pytest
from mutants import Mutant

from minillama.corpus.char_ngram import UNICODE_SCALARS, CharNgram, xz_bits_per_character

TRAIN = "the hen and the toad sat under the bridge; then the hen sang. Héh, 123\n" * 2 + "aaaaab"


def brute_force(train, history, character, k):
    """p_k(character | last k characters of history) by counting in the text, straight from the formula."""
    if k < 0:
        return 1 / UNICODE_SCALARS
    lower = brute_force(train, history, character, k - 1)
    if len(history) < k:
        return lower
    context = history[len(history) - k:]
    followers = [train[i + k] for i in range(len(train) - k) if train[i:i + k] == context]
    if not followers:
        return lower
    kinds = len(set(followers))
    return (followers.count(character) + kinds * lower) / (len(followers) + kinds)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_probabilities_equal_the_formula_counted_by_hand(order):
    model = CharNgram(order).fit(TRAIN)
    for text in ("then a hat; the héron", "a", "zz the é\U0001f989 toad", TRAIN[-9:]):
        expected = [brute_force(TRAIN, text[:i], text[i], order - 1) for i in range(len(text))]
        np.testing.assert_allclose(model.probabilities(text), expected, rtol=1e-12)  # 7 float64 steps each
        mean = -sum(map(math.log2, expected)) / len(text)
        assert model.bits_per_character(text) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("history", ["", "t", "the ", "aaaa", "zzzz", "the \U0001f989"])
def test_probabilities_over_all_of_unicode_sum_to_one(history):
    model = CharNgram(4).fit(TRAIN)
    known = sorted(set(TRAIN))
    total = sum(model.probabilities(history + character)[-1] for character in known)
    unknown = model.probabilities(history + "\u2603")[-1]
    assert "\u2603" not in known and model.probabilities(history + "\U0001f989")[-1] == unknown
    assert total + unknown * (UNICODE_SCALARS - len(known)) == pytest.approx(1, abs=1e-9)


def test_random_letters_cost_their_entropy_and_no_less():
    rng = random.Random(0)
    train, held_out = ("".join(rng.choice("abcdefgh") for _ in range(n)) for n in (200_000, 20_000))
    for order in (1, 2, 3):
        bits = CharNgram(order).fit(train).bits_per_character(held_out)
        assert 3 - 0.001 < bits < 3.02  # uniform over 8 letters: 3 bits; 64 contexts of 3,000 cost little to learn


def test_a_longer_memory_helps_on_text_that_repeats():
    bits = [CharNgram(n).fit("abcabd" * 500).bits_per_character("abcabd" * 50) for n in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True) and bits[-1] < 0.1


@pytest.mark.parametrize("order", [0, -1, 21, 2.0])
def test_an_impossible_order_is_refused(order):
    with pytest.raises((TypeError, ValueError), match="1 to 20"):
        CharNgram(order)


def test_empty_and_broken_texts_are_refused():
    for call in (lambda: CharNgram(2).fit(""), lambda: CharNgram(2).fit("a").bits_per_character(""),
                 lambda: xz_bits_per_character(""), lambda: CharNgram(1).fit("a\ud800")):
        with pytest.raises(ValueError, match="empty|surrogate"):
            call()


def test_xz_pays_little_for_what_it_has_read():
    rng = random.Random(1)
    text = "".join(rng.choice("abcdefgh") for _ in range(20_000))
    alone = xz_bits_per_character(text)
    assert 3 <= alone < 3.6  # no code is shorter than the entropy; xz is no entropy coder for letters
    assert xz_bits_per_character(text, train=text) < 0.05
    grown = len(lzma.compress((TRAIN + text).encode(), preset=9 | lzma.PRESET_EXTREME)) - len(
        lzma.compress(TRAIN.encode(), preset=9 | lzma.PRESET_EXTREME))
    assert xz_bits_per_character(text, TRAIN) == 8 * grown / len(text)


MODULE = "minillama.corpus.char_ngram"
MUTANTS = [
    Mutant(MODULE, "np.maximum(total + kind, 1)", "np.maximum(total, 1)",
           lambda: test_probabilities_over_all_of_unicode_sum_to_one("the ")),
    Mutant(MODULE, "np.bincount(followed, minlength=contexts)", "np.bincount(followed, counts, contexts)",
           lambda: test_probabilities_equal_the_formula_counted_by_hand(3)),
    Mutant(MODULE, "context, contexts = gram[:-1]", "context, contexts = gram[1:]",
           lambda: test_probabilities_equal_the_formula_counted_by_hand(3)),
    Mutant(MODULE, "np.where(seen, gram, -1)[:-1]", "gram[:-1]",
           lambda: test_probabilities_equal_the_formula_counted_by_hand(3)),
    Mutant(MODULE, "size(train + held_out) - size(train)", "size(held_out)", test_xz_pays_little_for_what_it_has_read),
]
