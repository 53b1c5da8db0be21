"""Characters and words as tokens: the shortest vocabulary with the longest texts, and the reverse.

What is not in the vocabulary becomes <unk> and is lost. Files and ids are those of SentencePiece's types "char" and
"word", where a word begins with U+2581, the visible space.
"""

import math
import re
from collections import Counter

from .bpe_encoder import PieceEncoder, cut_units
from .word_counts import RESERVED, SPACE

WORD = re.compile(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")  # unlike in BPE training, each space begins a word of its own


def most_frequent(counts, size):
    """[(entry, log of its share), ...]: the `size` most frequent of {entry: count}, ties by code points."""
    total, entries = sum(counts.values()), sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(entry, math.log(count / total)) for entry, count in entries[:size]]


def count_single_words(word_counts):
    """{word: count} of what `word_counts.count_words` found, where a run of spaces is one word for each space."""
    counts = Counter()
    for word, count in word_counts.items():
        for part in WORD.findall(word):
            if RESERVED not in part:
                counts[part] += count
    return counts


class CharacterEncoder(PieceEncoder):
    """Each character is a token, and each string of a user-defined piece."""

    def segment(self, text):
        return cut_units(text, self.own)


class WordEncoder(PieceEncoder):
    """Each space begins a token."""

    def segment(self, text):
        return WORD.findall(text)
