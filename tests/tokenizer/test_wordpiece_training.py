"""Training of WordPiece: each merge is the best by the formula, counted the long way."""

import itertools
import math
from collections import Counter
from fractions import Fraction
from functools import partial

import pytest
from mutants import Mutant

from minillama.tokenizer.wordpiece import (
    SPECIALS,
    gain_score,
    ratio_score,
    symbols_of,
    train_wordpiece,
    wordpiece_merges,
)

CORPORA = ({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}, {"abab": 7, "ba": 3, "aab": 5, "bbbb": 2, "b": 9},
           Counter("the old goat and the old hen told the cold man to hold the gold then".split()))


def first(n, *arguments, **options):
    return [*itertools.islice(wordpiece_merges(*arguments, **options), n)]


def counted(words):
    """{pair: count}, {symbol: count} of [(symbols, weight)]."""
    pairs, singles = Counter(), Counter()
    for symbols, weight in words:
        for symbol in symbols:
            singles[symbol] += weight
        for pair in zip(symbols, symbols[1:], strict=False):
            pairs[pair] += weight
    return pairs, singles


def joined(symbols, pair):
    out, place = [], 0
    while place < len(symbols):
        hit = tuple(symbols[place:place + 2]) == pair
        out.append(pair[0] + pair[1][2:] if hit else symbols[place])
        place += 2 if hit else 1
    return out


@pytest.mark.parametrize("corpus", range(3))
def test_each_merge_has_the_greatest_ratio_and_ties_fall_by_the_written_rule(corpus):
    words = [(symbols_of(word), count) for word, count in CORPORA[corpus].items()]
    merges = first(12, CORPORA[corpus])
    assert merges
    for merge in merges:
        pairs, singles = counted(words)
        ranked = sorted(pairs, key=lambda pair: (-Fraction(pairs[pair], singles[pair[0]] * singles[pair[1]]),
                                                 -pairs[pair], pair))
        assert merge == ranked[0]
        words = [(joined(symbols, merge), count) for symbols, count in words]


@pytest.mark.parametrize("corpus", range(3))
def test_the_gain_orders_the_pairs_otherwise_and_each_of_its_merges_is_the_best(corpus):
    words = [(symbols_of(word), count) for word, count in CORPORA[corpus].items()]
    merges = first(6, CORPORA[corpus], gain_score)
    for merge in merges:
        pairs, singles = counted(words)
        total = sum(singles.values())
        gains = {(a, b): n * math.log(n * total / singles[a] / singles[b]) for (a, b), n in pairs.items()}
        assert gains[merge] == pytest.approx(max(gains.values()), rel=1e-12)
        words = [(joined(symbols, merge), count) for symbols, count in words]
    assert merges != first(6, CORPORA[corpus], ratio_score)


def test_rare_pairs_are_left_alone_if_asked():
    assert all(pair != ("z", "##q") for pair in first(3, {"zq": 1, "low": 9, "lot": 9}, least=2))
    assert first(1, {"zq": 1, "low": 9, "lot": 9}) == [("z", "##q")]


def test_training_stops_at_the_size_wanted_however_often_a_piece_is_made_twice():
    words = ["ab abc bc abcd bcd cd"] * 3
    sizes = range(len(SPECIALS) + 7, len(SPECIALS) + 13)
    vocabularies = [list(train_wordpiece(words, size).ids) for size in sizes]
    assert [len(pieces) for pieces in vocabularies] == [*sizes]
    for small, large in itertools.pairwise(vocabularies):
        assert large[:len(small)] == small
    assert vocabularies[0][:11] == [*SPECIALS, "##b", "##c", "##d", "a", "b", "c"]


def test_what_a_size_may_be_is_said():
    with pytest.raises(ValueError, match="vocab_size 9 is impossible for this text: give 11 or more"):
        train_wordpiece(["ab abc bc abcd bcd cd"] * 3, 9)
    with pytest.raises(ValueError, match="vocab_size 900 is impossible for this text: give 11 to 1."):
        train_wordpiece(["ab abc bc abcd bcd cd"] * 3, 900)


def test_texts_files_and_bytes_are_read_alike(tmp_path):
    (tmp_path / "text").write_text("Hug hugs pug", encoding="utf-8")
    sizes = [train_wordpiece(source, 14, least=1).ids for source in (
        tmp_path / "text", ["Hug hugs pug"], [b"Hug hugs", "pug"])]
    assert sizes[0] == sizes[1] == sizes[2] and "h" in sizes[0] and "H" not in sizes[0]


plant = partial(Mutant, "minillama.tokenizer.wordpiece")
MUTANTS = [
    plant("return pair / (left * right)", "return pair / (left + right)",
          lambda: test_each_merge_has_the_greatest_ratio_and_ties_fall_by_the_written_rule(0)),
    plant("-pairs[pair], pair\n", "pair\n",
          lambda: [test_each_merge_has_the_greatest_ratio_and_ties_fall_by_the_written_rule(n) for n in range(3)]),
    plant("pair * math.log(pair * total", "math.log(pair * total",
          lambda: test_the_gain_orders_the_pairs_otherwise_and_each_of_its_merges_is_the_best(0)),
    plant("if found >= least", "if found > 0", test_rare_pairs_are_left_alone_if_asked),
    plant("count(number, -1)", "pass",
          lambda: test_each_merge_has_the_greatest_ratio_and_ties_fall_by_the_written_rule(0)),
    plant("while len(pieces) < vocab_size and", "while len(pieces) <= vocab_size and",
          test_training_stops_at_the_size_wanted_however_often_a_piece_is_made_twice),
]
