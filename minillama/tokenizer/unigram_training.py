"""Training of a unigram model: many seed pieces, then rounds of EM and pruning until the vocabulary is small enough.

Seeds are the strings that the text repeats, less those that are always followed by the same character (their longer
form stands for them): the inner nodes of the suffix tree. With all repeated strings instead, the vocabulary shares two
pieces in three with SentencePiece's. The rules are its own (google/sentencepiece, src/unigram_model_trainer.cc).
"""

import heapq
import math
from collections import Counter
from os.path import commonprefix

from .piece_trainer import DIGITS, script_class
from .unigram import UnigramModel, best_path, edge_probabilities, parts
from .unigram_steps import add_up, digamma
from .word_counts import BOUNDARY, RESERVED, SPACE

LEAST_COUNT = 0.5  # a piece that is expected less often is dropped
SUB_ITERATIONS = 2  # of EM before each pruning
SHRINKING = 0.75  # share of the pieces that stay in one round
SEED_SIZE = 1_000_000


def valid_piece(text, split_digits):
    """Whether a string of several characters may be a piece: U+2581 only in front or alone, letters of one script."""
    if split_digits and not DIGITS.isdisjoint(text) or SPACE in text[1:] and text.strip(SPACE):
        return False
    return len({script_class(character) for character in text} - {None}) < 2


def repeated_strings(suffix_counts):
    """{string: count} of the strings that at least two different characters follow, from {suffix of a text: count}.

    In a sorted list, the beginnings that neighbours share are these strings (a suffix array).

    >>> repeated_strings({"abab.": 1, "bab.": 1, "ab.": 1, "b.": 1, ".": 1})
    {'ab': 2, 'b': 2}
    """
    found, opened, previous = {}, [], ""  # opened: [length, count] of the strings that `previous` begins with
    for suffix in [*sorted(suffix_counts), ""]:
        shared, count = len(commonprefix((previous, suffix))), suffix_counts.get(previous, 0)
        while opened and opened[-1][0] > shared:
            length, before = opened.pop()
            count += before
            found[previous[:length]] = count
        if opened and opened[-1][0] == shared:
            opened[-1][1] += count
        elif shared:
            opened.append([shared, count])
        previous = suffix
    return found


def seed_pieces(word_counts, alphabet, max_piece_length, split_digits, whole_words=False):
    """{piece: log probability} to begin with: the alphabet by its counts, repeated strings by count times length.

    word_counts: a word's last character is what follows it, U+2581 or a newline. whole_words: words are seeds too. To
    SentencePiece one that always stands before a space is none: its longer form ends in that space, and is no piece.
    """
    suffixes, words = Counter(), Counter()
    for word, count in word_counts.items():
        words[word[:-1]] += count if whole_words and len(word) <= max_piece_length + 1 else 0
        for start in range(len(word) - 1):
            suffixes[word[start : start + max_piece_length + 1]] += count
    found = {**{word: count for word, count in words.items() if count > 1}, **repeated_strings(suffixes)}
    weights = {text: count * len(text) for text, count in found.items()
               if len(text) > 1 and alphabet.keys() >= set(text) and valid_piece(text, split_digits)}
    weights = {**alphabet, **dict(heapq.nlargest(SEED_SIZE, weights.items(), key=lambda item: item[1]))}
    total = math.log(sum(weights.values()))
    return {text: math.log(weight) - total for text, weight in weights.items()}


def expected_counts(log_p, word_counts):
    """The E step: {piece: how often it is expected in random segmentations of the words}."""
    model, expected = UnigramModel(log_p), Counter()
    for word, count in word_counts.items():
        for start, end, share in edge_probabilities(model.lattice(word)):
            expected[word[start:end]] += count * share
    return {piece: expected[piece] for piece in log_p}  # no unknown characters


def maximize(expected):
    """The M step: {piece: log probability}. Plain EM has log(count / sum); the digamma function in place of the
    logarithm favours few pieces, as a Dirichlet prior does."""
    kept = {piece: count for piece, count in expected.items() if count >= LEAST_COUNT}
    of_all = digamma(add_up(kept.values())) if kept else 0.0  # no piece may be so frequent
    return {piece: digamma(count) - of_all for piece, count in kept.items()}


def prune(log_p, word_counts, size):
    """The `size` pieces whose loss of likelihood would be greatest, less those that no best segmentation uses.

    Loss of a piece: its count times (its log probability less that of the best segmentation without it). A character
    that was dropped counts zero times there; SentencePiece takes it for its first piece, and so prunes what holds it.
    """
    model, counts = UnigramModel(log_p), Counter()
    for word, count in word_counts.items():
        for part in parts(word, best_path(model.lattice(word))):
            counts[part] += count
    used = {piece: counts[piece] for piece in log_p if counts[piece]}
    total, kept, losses = sum(used.values()), [], {}
    for piece, count in used.items():
        lattice = model.lattice(piece)
        if len(best_path(lattice)) > 2:
            continue  # its parts are better than itself
        lattice[-1] = [edge for edge in lattice[-1] if edge[0]]
        if not lattice[-1]:
            kept.append(piece)  # a character: nothing else can spell it
            continue
        others = parts(piece, best_path(lattice))
        new_total = math.log(total + count * (len(others) - 1))
        without = add_up(math.log(counts[other] + count) - new_total for other in others)
        losses[piece] = count * (math.log(count) - math.log(total) - without)
    kept += heapq.nlargest(max(size - len(kept), 0), losses, key=losses.get)
    return {piece: log_p[piece] for piece in kept}


def learn_unigram(word_counts, alphabet, size, enough, *seed_options, steps, progress=None):
    """[(piece, log probability), ...], the best first: the alphabet and others, `size` in all where there are so many.

    word_counts, alphabet, seed_options: as for `seed_pieces`. enough: pruning ends at so many pieces; the rest goes by
    probability. steps: `unigram_steps` or this module. progress: called with the number of pieces after each round.
    """
    known, spelled = alphabet.keys() | {SPACE, BOUNDARY, "\n"}, Counter()
    for word, count in word_counts.items():
        word = word if known >= set(word) else "".join(c if c in known else RESERVED for c in word)
        spelled[word] += count
    log_p, words = steps.seed_pieces(spelled, alphabet, *seed_options), Counter()
    for word, count in spelled.items():
        words[word[:-1]] += count
    while True:
        for _ in range(SUB_ITERATIONS):
            log_p = steps.maximize(steps.expected_counts(log_p, words))
        if progress:
            progress(len(log_p))
        if len(log_p) <= enough:
            return _final(log_p, alphabet, size)
        log_p = steps.prune(log_p, words, max(enough, int(SHRINKING * len(log_p))))


def _final(log_p, alphabet, size):
    """The alphabet, one that was dropped with the lowest probability, and the most probable of the others."""
    least, final = min(log_p.values()), {}
    for character in sorted(alphabet, key=lambda c: (-alphabet[c], c)):
        final[character] = log_p[character] if character in log_p else least + 1e-4 * len(final.keys() - log_p.keys())
    for piece in sorted(log_p, key=lambda piece: (-log_p[piece], piece)):
        if len(final) < size:
            final.setdefault(piece, log_p[piece])
    return sorted(final.items(), key=lambda item: (-item[1], item[0]))
