"""Training of a unigram model: against EM and pruning over segmentations that are written out, and sentencepiece."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from mutants import Mutant
from test_unigram import oracle, segmentations
from tokenizer_texts import real_text

from minillama.tokenizer import unigram_training
from minillama.tokenizer.sentencepiece import SentencePieceTokenizer
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.unigram import UnigramModel
from minillama.tokenizer.unigram_training import (
    learn_unigram,
    maximize,
    prune,
    repeated_strings,
    valid_piece,
)


def followed_by_two(texts):
    """The long way: strings that occur in the texts before at least two different characters."""
    found = {text[a:b] for text in texts for a in range(len(text)) for b in range(a + 1, len(text))}
    for string in sorted(found):
        places = [(text, at) for text in texts for at in range(len(text)) if text.startswith(string, at)]
        if len({text[at + len(string)] for text, at in places if at + len(string) < len(text)}) > 1:
            yield string, len(places)


def test_seeds_are_the_strings_that_two_different_characters_follow():
    draw = random.Random(4)
    for _ in range(40):
        texts = ["".join(draw.choices("ab", k=draw.randrange(1, 9))) + "." for _ in range(3)]
        suffixes = Counter(text[at:] for text in texts for at in range(len(text)))
        assert repeated_strings(suffixes) == dict(followed_by_two(texts))


def digamma(x):
    """The slope of log gamma at x, by five places."""
    h = 1e-4 * x
    slope = -math.lgamma(x + 2 * h) + 8 * math.lgamma(x + h) - 8 * math.lgamma(x - h) + math.lgamma(x - 2 * h)
    return slope / (12 * h)


def test_a_piece_may_not_mix_scripts_nor_join_digits_nor_reach_over_a_space():
    for text in ("ab", "▁ab", "▁▁▁", "漢字ひ", "a\u0301b"):
        assert valid_piece(text, True), text
    for text in ("a漢", "a1", "12", "a▁", "▁a▁b", "▁▁a", "a\u0301и", "a."):
        assert not valid_piece(text, True), text
    assert valid_piece("12", False)


def test_pruning_keeps_characters_and_what_would_be_missed_most():
    log_p = {"a": -2.0, "b": -2.0, "ab": -2.5, "ba": -2.5, "aa": -9.0, "bb": -3.5}
    kept = prune(log_p, {"abab": 50, "ba": 3, "bb": 20, "a": 9, "b": 9, "aa": 9}, 4)
    assert kept.keys() == {"a", "b", "ab", "bb"}, "aa is worse than a a, and ba is used least"


def test_what_is_expected_less_than_half_a_time_is_dropped():
    log_p = maximize({"a": 10.0, "b": 0.49, "c": 0.5})
    assert log_p == pytest.approx({"a": digamma(10.0) - digamma(10.5), "c": digamma(0.5) - digamma(10.5)}, rel=1e-7)


def pruned_the_long_way(model, words, size):
    """Segmentations written out; a piece's loss is of log likelihood, where it is cut into its best other parts."""
    def best(text, without=()):
        return max(((score, parts) for score, parts in segmentations(model, text) if without not in parts),
                   default=(0, None))[1]

    counts = Counter()
    for word, count in words.items():
        counts.update({part: count * n for part, n in Counter(best(word)).items()})
    used = {piece: counts[piece] for piece in model.log_p if counts[piece]}
    total, losses = sum(used.values()), {}
    for piece, count in used.items():
        if best(piece) == [piece]:
            others = best(piece, piece)
            after = total - count + count * len(others or ())
            losses[piece] = math.inf if others is None else count * (
                math.log(count / total) - sum(math.log((counts[other] + count) / after) for other in others))
    size = max(size, list(losses.values()).count(math.inf))  # nothing else can spell a character
    return {piece: model.log_p[piece] for piece in sorted(losses, key=losses.get, reverse=True)[:size]}


def test_pruning_to_every_size_drops_what_the_likelihood_misses_least():
    for seed in range(3):
        draw = random.Random(seed)
        for _ in range(8):
            texts = {"".join(draw.choices("abc", k=draw.randrange(1, 5))) for _ in range(14)}
            model = UnigramModel({text: -1 - 4 * draw.random() for text in texts | set("abc")})
            words = {"".join(draw.choices("abc", k=draw.randrange(2, 7))): draw.randrange(1, 9) for _ in range(12)}
            for size in range(12):
                assert prune(model.log_p, words, size).keys() == pruned_the_long_way(model, words, size).keys()


def learned_the_long_way(word_counts, alphabet, size, enough, longest):
    """(pieces and scores, the number of pieces after each round): EM over all segmentations, each written out."""
    words = {word[:-1]: count for word, count in word_counts.items()}
    texts = [word.replace("?", "!") for word, count in word_counts.items() for _ in range(count)]  # one unknown letter
    weights = {**alphabet, **{text: n * len(text) for text, n in followed_by_two(texts)
                              if 1 < len(text) <= longest and set(text) <= set(alphabet)}}
    log_p, rounds = {text: math.log(weight / sum(weights.values())) for text, weight in weights.items()}, []
    while True:
        for _ in range(2):
            expected, model = Counter(), UnigramModel(log_p)
            for word, count in words.items():
                ways = [(math.exp(score), pieces) for score, pieces in segmentations(model, word)]
                for p, pieces in ways:
                    for piece in pieces:
                        expected[piece] += count * p / sum(p for p, _ in ways)
            expected = {piece: n for piece, n in expected.items() if piece in log_p and n >= 0.5}
            values = torch.tensor([*expected.values(), sum(expected.values())], dtype=torch.float64).digamma()
            log_p = dict(zip(expected, (values[:-1] - values[-1]).tolist(), strict=True))
        rounds.append(len(log_p))
        if rounds[-1] <= enough:
            break
        log_p = pruned_the_long_way(UnigramModel(log_p), words, max(enough, rounds[-1] * 3 // 4))
    gone = sorted(alphabet.keys() - log_p.keys(), key=alphabet.get, reverse=True)
    final = {**{c: log_p.get(c) for c in alphabet}, **{c: min(log_p.values()) + n / 1e4 for n, c in enumerate(gone)}}
    others = sorted(log_p.keys() - alphabet.keys(), key=log_p.get, reverse=True)[:size - len(final)]
    return {**final, **{piece: log_p[piece] for piece in others}}, rounds


def test_training_is_two_steps_of_em_and_a_pruning_to_three_quarters_until_enough_are_left():
    """q and z occur before u alone, and are dropped; ! and ? are no letters of the alphabet."""
    for seed, size in itertools.product(range(3), (9, 15)):  # the rarest are cut off, or there is room for all
        draw = random.Random(seed)
        letters = draw.choices(["a", "b", "qu", "zu", "!", "?"], (4, 4, 3, 2, 1, 1), k=100)
        words = {"".join(draw.sample(letters, draw.randrange(2, 6))) + "\n": draw.randrange(1, 30) for _ in range(25)}
        alphabet = Counter()
        for word, count in words.items():
            alphabet.update({letter: count * word.count(letter) for letter in "abquz" if letter in word})
        wanted, rounds = learned_the_long_way(words, alphabet, size, 10, 4)
        found = learn_unigram(words, alphabet, size, 10, 4, True, steps=unigram_training, progress=(told := []).append)
        assert dict(found) == pytest.approx(wanted, abs=1e-6) and told == rounds and len(rounds) > 1
        assert found == sorted(found, key=lambda item: (-item[1], item[0])), "of equals the first by the alphabet"


def log_likelihood(pieces, data):
    """nats of a text under a model made to sum to one, spaces and line ends as in training."""
    log_p = {piece.text: piece.score for piece in pieces if piece.kind == 1}
    total = math.log(math.fsum(map(math.exp, log_p.values())))
    model = UnigramModel({text: score - total for text, score in log_p.items()})
    lines = [line for line in data.decode("utf-8", "replace").split("\n") if line]
    return math.fsum(model.log_likelihood("▁" + line.replace(" ", "▁")) for line in lines)


def check_training(size, seed, pieces):
    data = real_text(size, seed)
    theirs = SentencePieceTokenizer(oracle(0, size, seed, pieces)).pieces
    ours = train_sentencepiece([data], pieces, "unigram", backend="python" if pieces < 1000 else None).pieces
    shared = {piece.text for piece in ours} & {piece.text for piece in theirs}
    assert [piece.kind for piece in ours] == [piece.kind for piece in theirs] and len(shared) >= 0.95 * pieces
    assert log_likelihood(ours, data) > 1.001 * log_likelihood(theirs, data), "at most 0.1 % below sentencepiece's"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trained_pieces_are_nearly_sentencepieces_and_tell_the_text_as_well(seed):
    check_training(12_000, seed, 500)


@pytest.mark.long
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_more_trained_pieces_tell_a_larger_text_as_well(seed):
    check_training(400_000, seed, 3000)


@pytest.mark.long
def test_eight_thousand_pieces_tell_ten_megabytes_as_well():
    check_training(10_000_000, 0, 8000)


def check_whole_words(seed):
    from minillama.corpus import stories
    texts = [story.text for story in stories.documents(seed, 100)]
    plain, with_words = (train_sentencepiece(texts, 500, "unigram", hard_vocab_limit=False, whole_words=whole,
                                             backend="python")
                         for whole in (False, True))
    data = "\n".join(texts).encode()
    assert log_likelihood(with_words.pieces, data) > 0.9 * log_likelihood(plain.pieces, data)
    assert sum(len(with_words.encode(text)) for text in texts) < 0.9 * sum(len(plain.encode(text)) for text in texts)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_words_as_seeds_tell_a_text_of_long_lines_better_in_fewer_tokens(seed):
    check_whole_words(seed)


TRAINING = "minillama.tokenizer.unigram_training"
MUTANTS = [
    Mutant(TRAINING, "opened[-1][1] += count", "opened[-1][1] = count",
           test_seeds_are_the_strings_that_two_different_characters_follow),
    Mutant(TRAINING, "if count > 1}, **", "if count > 10**9}, **", lambda: check_whole_words(0)),
    Mutant(TRAINING, "digamma(count) - of_all", "math.log(count) - of_all",
           test_what_is_expected_less_than_half_a_time_is_dropped),
    Mutant(TRAINING, "key=losses.get", "key=lambda piece: -losses[piece]",
           test_pruning_keeps_characters_and_what_would_be_missed_most),
    Mutant(TRAINING, "for _ in range(SUB_ITERATIONS):", "for _ in range(1):",
           test_training_is_two_steps_of_em_and_a_pruning_to_three_quarters_until_enough_are_left),
    Mutant(TRAINING, "least + 1e-4 * len(", "least + 2e-4 * len(",
           test_training_is_two_steps_of_em_and_a_pruning_to_three_quarters_until_enough_are_left),
    Mutant(TRAINING, "count * (len(others) - 1))", "count * len(others))",
           test_pruning_to_every_size_drops_what_the_likelihood_misses_least),
]
