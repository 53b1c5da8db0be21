"""Characters and words as tokens: the shortest vocabulary with the longest texts, and the reverse.

What is not in the vocabulary becomes <unk> and is lost. Files and ids are those of SentencePiece's types "char" and
"word", where a word begins with U+2581, the visible space.
"""

import math
import re
from collections import Counter

from .bpe_encoder import MATCHABLE, own_pattern, whitespace_normalizer
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


def coverage(counts, size):
    """The share of all occurrences that the `size` most frequent of {entry: count} make up.

    >>> coverage({"a": 6, "b": 3, "c": 1}, 2)
    0.9
    """
    return sum(sorted(counts.values(), reverse=True)[:size]) / sum(counts.values())


class PieceEncoder:
    """Ids by a function `segment` from a normalised text to its pieces; arguments as for `bpe_encoder.BpeEncoder`."""

    def __init__(self, pieces, unk_id, rules):
        self.unk_id, self.rules, self.normalize = unk_id, rules, whitespace_normalizer(pieces, rules)
        self.own, self.all_ids = own_pattern(pieces), {text: i for i, (text, _, _) in enumerate(pieces)}
        self.id_of = {text: i for text, i in self.all_ids.items() if pieces[i][2] in MATCHABLE and text != "\0"}

    def encode(self, text):
        """The ids of a text."""
        return self.ids(self.segment(self.normalize(text)))

    def ids(self, segmentation):
        """The ids of these pieces; what is no piece becomes its bytes, or <unk>, a run of which is one."""
        ids = []
        for part in segmentation:
            known = self.id_of.get(part)
            if known is not None:
                ids.append(known)
            elif self.rules.byte_fallback:
                ids += [self.all_ids[f"<0x{byte:02X}>"] for byte in part.encode()]
            elif not ids or ids[-1] != self.unk_id:
                ids.append(self.unk_id)
        return ids


class CharacterEncoder(PieceEncoder):
    """Each character is a token, and each string of a user-defined piece."""

    def segment(self, text):
        """The pieces of a normalised text."""
        return re.findall(f"{self.own.pattern}|." if self.own else ".", text, re.DOTALL)


class WordEncoder(PieceEncoder):
    """Each space begins a token."""

    def segment(self, text):
        """The pieces of a normalised text."""
        return WORD.findall(text)
