"""The unigram model against all segmentations written out, and against sentencepiece: ids and likelihood."""

import itertools
import math
import random
from collections import Counter
from functools import lru_cache

import pytest
from mutants import Mutant
from tokenizer_texts import hand_made, processor, random_text, real_text, train_oracle

from minillama.tokenizer import SentencePieceTokenizer
from minillama.tokenizer.extend import extend_tokenizer
from minillama.tokenizer.gguf_vocab import gguf_vocab
from minillama.tokenizer.llama2c_vocab import llama2c_vocab
from minillama.tokenizer.sentencepiece import Piece
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.unigram import UnigramModel, edge_probabilities

OPTIONS = ({}, {"byte_fallback": False}, {"byte_fallback": False, "remove_extra_whitespaces": True},
           {"user_defined_symbols": ["foo_bar", "return", "你好"]})


@lru_cache
def oracle(option=0, size=60_000, seed=0, pieces=900):
    return train_oracle(real_text(size, seed), pieces, model_type="unigram", **OPTIONS[option])


def random_model(draw):
    """Scores are multiples of 1/64, so that 32-bit sums of them are exact and ties are ties."""
    texts = {"".join(draw.choices("ab", k=draw.randrange(1, 5))) for _ in range(8)} - {draw.choice("ab")}
    return UnigramModel({text: -draw.randrange(64, 640) / 64 for text in texts})


def segmentations(model, text):
    """Every segmentation with its log probability, the long way."""
    for cuts in itertools.product((False, True), repeat=max(len(text) - 1, 0)):
        places = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(places)]
        if all(piece in model.log_p or len(piece) == 1 for piece in pieces):
            yield math.fsum(model.log_p.get(piece, model.unknown) for piece in pieces), pieces


def test_the_best_segmentation_is_the_best_of_all():
    draw = random.Random(1)
    for _ in range(60):
        model, text = random_model(draw), "".join(draw.choices("abc", k=draw.randrange(1, 13)))
        scores = {tuple(pieces): score for score, pieces in segmentations(model, text)}
        assert scores[tuple(model.segment(text))] == max(scores.values())


def test_the_likelihood_and_the_probability_of_each_piece_are_sums_over_all_segmentations():
    draw = random.Random(3)
    for _ in range(40):
        model, text = random_model(draw), "".join(draw.choices("abc", k=draw.randrange(1, 9)))
        ways = [(math.exp(score), pieces) for score, pieces in segmentations(model, text)]
        total, shares = math.fsum(p for p, _ in ways), Counter()
        assert model.log_likelihood(text) == pytest.approx(math.log(total), abs=1e-12)
        for p, pieces in ways:
            for piece in pieces:
                shares[piece] += p / total
        found = Counter()
        for start, end, share in edge_probabilities(model.lattice(text)):
            found[text[start:end]] += share
        assert {piece: share for piece, share in found.items() if share} == pytest.approx(dict(shares), abs=1e-12)


def check_ids(option, count, seed=0):
    model, draw = oracle(option), random.Random(seed)
    ours, theirs = SentencePieceTokenizer(model), processor(model)
    lines = real_text(60_000).decode("utf-8", "ignore").split("\n")
    for number in range(count):
        text = random_text(draw) if number % 3 else f"{draw.choice(lines)} {draw.choice(lines)}"
        assert ours.encode(text) == theirs.encode(text), repr(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), repr(text)


@pytest.mark.parametrize("option", [0, 1, 2])
def test_ids_are_sentencepieces(option):
    check_ids(option, 60)


@pytest.mark.long
@pytest.mark.parametrize("option", [0, 1, 2])
def test_many_ids_are_sentencepieces(option):
    check_ids(option, 34_000, seed=1)


def test_user_defined_pieces_are_found_whole_as_sentencepiece_finds_them():
    ours, theirs = SentencePieceTokenizer(oracle(3)), processor(oracle(3))
    for text in ("return foo_bar 你好", "returnfoo_barreturn x 你好你好", "foo_ba return", " return  return "):
        assert ours.encode(text) == theirs.encode(text)
    assert [ours.id_to_piece(i) for i in ours.encode("xreturny")][2] == "return"


def random_unigram_model(draw):
    """Few pieces of every kind, with scores around those of user-defined pieces, 0.1 for each byte but the first."""
    found, scores = {"x": Piece("x", -3.0)}, [-0.02, -0.05, -0.08, -0.15, -1.0, -9.0, 0.75]
    for _ in range(draw.randrange(2, 12)):
        text, score = "".join(draw.choices("ab\u2581c", k=draw.randrange(1, 4))), draw.choice(scores)
        found[text] = Piece(text, score, draw.choice([1, 1, 4, 5]))
    return hand_made(found.values(), byte_fallback=draw.random() < 0.5, trainer=[(3, 0, 1)])


def test_any_mixture_of_pieces_and_scores_is_encoded_as_by_sentencepiece():
    draw = random.Random(6)
    for number in range(150):
        model = random_unigram_model(draw)
        ours, theirs = SentencePieceTokenizer(model), processor(model)
        for _ in range(8):
            text = "".join(draw.choices("ab cd", (3, 3, 1, 2, 1), k=draw.randrange(12)))
            assert ours.encode(text) == theirs.encode(text), (number, text)


def test_a_vocabulary_that_is_too_small_or_too_large_is_refused_with_the_limits():
    with pytest.raises(ValueError, match="vocab_size 260 is too low .* at least 263"):
        train_sentencepiece(["abc"], 260, "unigram")
    with pytest.raises(ValueError, match="too high for this text: .* are possible"):
        train_sentencepiece(["abc"], 800, "unigram")
    with pytest.raises(ValueError, match="model_type 'trigram' is not known: choose one of bpe, char, unigram, word"):
        train_sentencepiece(["abc"], 300, "trigram")


def test_forms_that_hold_bpe_alone_refuse_a_unigram_model():
    tokenizer = SentencePieceTokenizer(oracle())
    with pytest.raises(ValueError, match="unigram"):
        gguf_vocab(tokenizer, tokenizer.vocab_size)
    with pytest.raises(ValueError, match="unigram"):
        llama2c_vocab(tokenizer)
    with pytest.raises(ValueError, match="unigram"):
        extend_tokenizer(tokenizer, tokenizer.pieces)


MODEL = "minillama.tokenizer.unigram"
MUTANTS = [
    Mutant(MODEL, "if best[-1] > best[end]:", "if best[-1] >= best[end]:", lambda: check_ids(0, 400)),
    Mutant(MODEL, "self.unknown))", "0.0))", test_the_best_segmentation_is_the_best_of_all),
    Mutant(MODEL, "math.exp(sums[start] + score + rest - sums[size])", "math.exp(score + rest - sums[size])",
           test_the_likelihood_and_the_probability_of_each_piece_are_sums_over_all_segmentations),
    Mutant(MODEL, "0.1 * (len(text.encode()) - 1)", "-0.1",
           test_any_mixture_of_pieces_and_scores_is_encoded_as_by_sentencepiece),
]
