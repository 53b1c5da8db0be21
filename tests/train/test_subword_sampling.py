"""Subword regularization: draws against all segmentations, counted out."""

import math
import random
from collections import Counter

import pytest
from mutants import Mutant
from test_unigram import oracle, random_model, segmentations

from minillama.tokenizer import SentencePieceTokenizer
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.unigram import UnigramModel
from minillama.train.subword_sampling import draw_segmentation, n_best_segmentations, sample_ids


def test_the_n_best_are_the_n_best_of_all():
    draw = random.Random(2)
    for _ in range(40):
        model, text = random_model(draw), "".join(draw.choices("abc", k=draw.randrange(1, 9)))
        everything = sorted((score for score, _ in segmentations(model, text)), reverse=True)
        found = n_best_segmentations(model, text, 5)
        assert [score for score, _ in found] == everything[:5] and len({*map(str, found)}) == len(found)
        assert found[0][0] == math.fsum(model.log_p.get(piece, model.unknown) for piece in model.segment(text))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_draws_are_as_frequent_as_the_probabilities_to_the_power_alpha(alpha):
    model, text, n = UnigramModel({"a": -1.0, "b": -2.0, "ab": -2.5, "ba": -2.0, "aba": -4.0}), "ababa", 3000
    weights = {tuple(pieces): math.exp(alpha * score) for score, pieces in segmentations(model, text)}
    for seed in range(3):
        draw = random.Random(seed)
        counts = Counter(tuple(draw_segmentation(model, text, alpha, draw)) for _ in range(n))
        expected = {way: n * weight / sum(weights.values()) for way, weight in weights.items()}
        assert counts.keys() <= expected.keys()
        chi2 = sum((counts[way] - mean) ** 2 / mean for way, mean in expected.items())
        assert chi2 < len(expected) + 5 * math.sqrt(2 * len(expected))  # five standard deviations


def test_drawn_ids_say_the_same_text_and_other_types_draw_none():
    tokenizer, text = SentencePieceTokenizer(oracle()), "the return of 2023 你好"
    drawn = [sample_ids(tokenizer, text, 0.2, random.Random(seed)) for seed in range(9)]
    assert {tokenizer.decode(ids) for ids in drawn} == {text} and len({*map(tuple, drawn)}) > 2
    assert sample_ids(tokenizer, text, 1e4, random.Random(0)) == tokenizer.encode(text), "the best alone is left"
    with pytest.raises(ValueError, match="type char: only a unigram model draws"):
        sample_ids(train_sentencepiece(["abc"], 6, "char"), "a", 1.0, random.Random(0))


MODULE = "minillama.train.subword_sampling"
MUTANTS = [
    Mutant(MODULE, "heapq.nlargest(n, found)", "heapq.nlargest(n, found)[:2]", test_the_n_best_are_the_n_best_of_all),
    Mutant(MODULE, "encoder.normalize(text)", "text", test_drawn_ids_say_the_same_text_and_other_types_draw_none),
    Mutant(MODULE, "path_sums(lattice, alpha), [len", "path_sums(lattice), [len",
           lambda: test_draws_are_as_frequent_as_the_probabilities_to_the_power_alpha(3.0)),
]
