"""The steps of unigram training, compiled (csrc/cpu/unigram.cpp, csrc/cpu/unigram_seeds.cpp; library minillama._C).

Each stands for the function of its name in `unigram_training`: the same arguments, and results equal to the last bit,
as both take their sums in the same order (`add_up`, which `sum` does not do in every Python) and have one `digamma`.
"""

import functools
import math
import operator

from .compiled import DIGIT_CLASS, _core
from .piece_trainer import DIGITS, script_class


def add_up(terms):
    """The sum, one after the other, each rounded."""
    return functools.reduce(operator.add, terms, 0.0)


def digamma(x):
    """The slope of log gamma at x > 0: by that at x + 1, and from 10 on by its asymptotic series, exact to 1e-13."""
    below = 0.0
    while x < 10:
        below, x = below - 1 / x, x + 1
    y = 1 / (x * x)
    return below + math.log(x) - 0.5 / x - y * (1/12 - y * (1/120 - y * (1/252 - y * (1/240 - y * (1/132)))))


def seed_pieces(word_counts, alphabet, max_piece_length, split_digits, whole_words=False):
    """{piece: log probability} to begin with."""
    numbers = {None: 0}  # goes with every script
    classes = [numbers.setdefault(script_class(letter), len(numbers)) for letter in alphabet]
    if split_digits:
        classes = [DIGIT_CLASS if letter in DIGITS else kind for letter, kind in zip(alphabet, classes, strict=True)]
    return _core().unigram_seeds(word_counts, alphabet, classes, max_piece_length, whole_words)


def expected_counts(log_p, word_counts):
    """The E step."""
    return _core().unigram_expected_counts(log_p, word_counts)


def maximize(expected):
    """The M step."""
    return _core().unigram_maximize(expected)


def prune(log_p, word_counts, size):
    """The `size` pieces that would be missed most."""
    return _core().unigram_prune(log_p, word_counts, size)
