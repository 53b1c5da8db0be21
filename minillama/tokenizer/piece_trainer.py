"""SentencePiece's BPE training: `bpe.sennrich_merges` with rules for pieces, and each merge by the words it changes.

Pieces obey rules (one script, single digits, at most 16 characters), and ties have a fixed order. Counting all pairs
anew would read the whole text for each merge; here each pair knows its words, and only those are counted anew.
"""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

from .bpe import join_pair
from .unicode_script import script_of
from .word_counts import SPACE

DIGITS = frozenset("0123456789" + "".join(map(chr, range(0xFF10, 0xFF1A))))  # ASCII and fullwidth
HAN_LIKE = ("Hiragana", "Katakana")  # Japanese mixes its scripts: one class with Han
LONG_VOWEL = "\u30fc"  # Katakana's vowel mark, Common in Unicode, but written between Katakana
UNSPACED = {"Han", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"}  # `script_class`es whose words no space parts


def script_class(character):
    """Script of a character for the one-script rule; None where it fits any (spaces and combining marks)."""
    if character == SPACE:
        return None
    script = script_of(character)
    if script in HAN_LIKE or character == LONG_VOWEL:
        return "Han"
    return None if script == "Inherited" else script


class PieceTrainer:
    """BPE training on word counts in SentencePiece's form, exactly its choices.

    A pair (left, right) of neighbouring symbols may be joined to an admissible piece: at most `max_piece_length`
    characters, no digit if `split_digits` and no letter of UNSPACED if `split_unspaced` (they stay single), U+2581 only
    in front or alone, letters of one script. Repeatedly the admissible pair with the greatest count is taken; ties go
    to the shorter string, then to the lower code points. "aaa" counts "aa" twice but joins it once, from the left.

    No string is reached by two different pairs: between two token borders the text is always cut as it would be on
    its own (by induction over the merges), so all occurrences of a string have the same last pair.

    >>> trainer = PieceTrainer({"\u2581low": 5, "\u2581lot": 2}, "\u2581lowt")
    >>> [trainer.next_piece() for _ in range(3)]
    ['lo', '\u2581lo', '\u2581low']
    """

    def __init__(self, word_counts, alphabet, max_piece_length=16, split_digits=True, split_unspaced=False):
        self.max_piece_length = max_piece_length
        self.script = {character: script_class(character) for character in alphabet}  # of each symbol
        self.single = {character for character, script in self.script.items()
                       if split_digits and character in DIGITS or split_unspaced and script in UNSPACED}
        self.admitted = {}  # (left, right) -> whether it may be joined
        parts = Counter()
        for word, count in word_counts.items():
            for segment in self._segments(word):
                parts[segment] += count
        self.words, self.weights = list(parts), list(parts.values())  # words as tuples of symbols
        self.counts, self.places = Counter(), defaultdict(set)  # of each admissible pair: occurrences; numbers of words
        self.changed, self.heap = set(), []  # pairs whose count is new; (-count, order, pair), some outdated
        for number in range(len(self.words)):
            self._count_pairs(number, self.weights[number])

    def _segments(self, word):
        """The word cut wherever two characters can never share a piece, without single characters."""
        start = 0
        for place in range(1, len(word) + 1):
            if place == len(word) or not self.admissible(*word[place - 1:place + 1], length_matters=False):
                if place - start > 1:
                    yield tuple(word[start:place])
                start = place

    def admissible(self, left, right, length_matters=True):
        """Whether the joined string of two symbols may be a piece."""
        if left not in self.script or right not in self.script:  # outside the alphabet
            return False
        if length_matters and len(left) + len(right) > self.max_piece_length:
            return False
        if left in self.single or right in self.single:
            return False
        if right[0] == SPACE:  # spaces join only spaces ...
            return left[-1] == SPACE and right[-1] == SPACE
        if left[-1] == SPACE and len(left) > 1:  # ... and only one of them joins a word
            return False
        return self.script[left] is None or self.script[right] is None or self.script[left] == self.script[right]

    def _count_pairs(self, number, weight):
        """Add `weight` to the count of each admissible pair of a word."""
        word = self.words[number]
        for pair in zip(word, word[1:], strict=False):
            if self._count(pair, weight):
                self.places[pair].add(number)

    def _count(self, pair, weight):
        if pair not in self.admitted:
            self.admitted[pair] = self.admissible(*pair)
        if self.admitted[pair]:
            self.counts[pair] += weight
            self.changed.add(pair)
        return self.admitted[pair]

    def order(self, pair):
        """What decides among pairs of equal count, the least first."""
        return len("".join(pair)), "".join(pair)

    def best_pair(self):
        """The admissible pair with the greatest count; None when there is none."""
        for pair in self.changed:
            heapq.heappush(self.heap, (-self.counts[pair], self.order(pair), pair))
        self.changed.clear()
        while self.heap and -self.heap[0][0] != self.counts[self.heap[0][2]]:
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None

    def next_piece(self):
        """Join the best pair everywhere and return its string; None when no admissible pair is left."""
        pair = self.best_pair()
        if pair is None:
            return None
        left, right = pair
        piece, script = left + right, self.script[left]
        self.script[piece] = self.script[right] if script is None else script
        for number in self.places.pop((left, right), ()):
            self._count_pairs(number, -self.weights[number])
            self.words[number] = word = join_pair(self.words[number], pair, piece)
            self._count_pairs(number, self.weights[number])
            if (piece, piece) in pairwise(word):  # between two joins the first stood before what the second took away:
                self._count((piece, left), 0)  # SentencePiece knows that pair from then on, with a count of zero
        self.counts[left, right] = -1  # of no entry
        self.admitted[left, right] = False
        self.changed.discard((left, right))
        return piece
