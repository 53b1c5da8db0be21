"""SentencePiece's BPE training: `bpe.sennrich_merges` with rules for pieces, and each merge by the pairs it changes.

Pieces obey rules (one script, single digits, at most 16 characters), and ties have a fixed order. Counting all pairs
anew would read the whole text for each merge; here a heap holds the counts, and a merge changes its neighbours' only.
"""

import heapq
from collections import Counter

from .unicode_script import script_of
from .word_counts import SPACE

DIGITS = frozenset("0123456789" + "".join(map(chr, range(0xFF10, 0xFF1A))))  # ASCII and fullwidth
HAN_LIKE = ("Hiragana", "Katakana")  # Japanese mixes its scripts: one class with Han
LONG_VOWEL = "\u30fc"  # Katakana's vowel mark, Common in Unicode, but written between Katakana
BARRIER = -1  # stands at both ends of every segment; never joins


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

    A pair (left, right) of neighbouring symbols may be joined when the joined string is an admissible piece:
    at most `max_piece_length` characters, no digit if `split_digits` (digits stay single), U+2581 only in front or
    alone, letters of one script. Repeatedly the admissible pair with the greatest count is taken; ties go to the
    shorter string, then to the lower code points. "aaa" counts "aa" twice but joins it once, from the left.

    No string is reached by two different pairs: between two token borders the text is always cut as it would be on
    its own (by induction over the merges), so all occurrences of a string have the same last pair.

    Each symbol of the text has a place. `places` of a pair only grow and may go stale; a pair's count is exact. A
    count grows only while the newer of its two symbols is being made, hence every pair needs just one heap entry,
    put back with the true count when it comes up stale. Cost: O(log pairs) for each changed neighbour.
    """

    def __init__(self, word_counts, alphabet, max_piece_length=16, split_digits=True):
        self.max_piece_length, self.split_digits = max_piece_length, split_digits
        self.text, self.length, self.script, self.digit = [], [], [], []  # by symbol
        self.symbol, self.next, self.previous, self.weight = [BARRIER], [0], [0], [0]  # by place
        self.pairs = {}  # (left, right) -> [count, places], or None: never (again) to be joined
        self.heap, self.fresh, self.last_count = [], set(), 0
        ids = {character: self._add_symbol(character, script_class(character)) for character in alphabet}
        self.joinable = {}
        segments = self._segments(word_counts, ids)
        self.segments = len(segments)
        for segment, count in segments.items():
            self._lay_out(segment, count)
        self._queue_fresh_pairs()

    def _add_symbol(self, text, script):
        self.text.append(text)
        self.length.append(len(text))
        self.script.append(script)
        self.digit.append(self.split_digits and text in DIGITS)
        return len(self.text) - 1

    def _segments(self, word_counts, ids):
        """Words cut wherever two characters can never share a piece, as tuples of symbols, counted again."""
        segments = Counter()
        for word, count in word_counts.items():
            start, symbols = 0, [ids.get(character, BARRIER) for character in word]
            for place in range(1, len(symbols) + 1):
                if place == len(symbols) or not self._may_touch(symbols[place - 1], symbols[place]):
                    if place - start > 1:
                        segments[tuple(symbols[start:place])] += count
                    start = place
        return segments

    def _may_touch(self, left, right):
        known = self.joinable.get((left, right))
        if known is None:
            known = BARRIER not in (left, right) and self.admissible(left, right, length_matters=False)
            self.joinable[left, right] = known
        return known

    def admissible(self, left, right, length_matters=True):
        """Whether the joined string of two symbols may be a piece."""
        text, length, script = self.text, self.length, self.script
        if length_matters and length[left] + length[right] > self.max_piece_length:
            return False
        if self.digit[left] or self.digit[right]:
            return False
        if text[right][0] == SPACE:  # spaces join only spaces ...
            return text[left][-1] == SPACE and text[right][-1] == SPACE
        if text[left][-1] == SPACE and length[left] > 1:  # ... and only one of them joins a word
            return False
        return script[left] is None or script[right] is None or script[left] == script[right]

    def _lay_out(self, segment, count):
        """Append a segment to the places: its symbols, then a barrier."""
        first = len(self.symbol)
        self.symbol += [*segment, BARRIER]
        self.next += range(first + 1, first + len(segment) + 2)
        self.previous += range(first - 1, first + len(segment))
        self.weight += [count] * (len(segment) + 1)
        for place in range(first, first + len(segment) - 1):
            self._gain(self.symbol[place], self.symbol[place + 1], place)

    def _gain(self, left, right, place):
        """One more occurrence of the pair, with its left symbol at `place`."""
        if left == BARRIER or right == BARRIER:
            return
        pair = left, right
        entry = self.pairs.get(pair)
        if entry is None:
            if pair in self.pairs or not self.admissible(left, right):
                self.pairs[pair] = None
                return
            entry = self.pairs[pair] = [0, []]
            self.fresh.add(pair)
        entry[0] += self.weight[place]
        entry[1].append(place)

    def _lose(self, left, right, weight):
        entry = self.pairs.get((left, right))
        if entry is not None:
            entry[0] -= weight

    def _queue_fresh_pairs(self):
        for pair in self.fresh:
            self._queue(pair, self.pairs[pair][0])
        self.fresh.clear()

    def _queue(self, pair, count):
        text = self.text[pair[0]] + self.text[pair[1]]
        heapq.heappush(self.heap, (-count, len(text), text, pair))  # str order is the order of UTF-8 bytes

    def next_piece(self):
        """Join the best pair everywhere and return its string; None when no admissible pair is left."""
        while self.heap:
            minus_count, _, text, pair = heapq.heappop(self.heap)
            count, places = self.pairs[pair]
            if count != -minus_count:
                self._queue(pair, count)
                continue
            self.pairs[pair], self.last_count = None, count
            left, right = pair
            script = self.script[left] if self.script[left] is not None else self.script[right]
            self._join(left, right, self._add_symbol(text, script), places)
            self._queue_fresh_pairs()
            return text
        return None

    def _join(self, left, right, new, places):
        symbol, following, previous = self.symbol, self.next, self.previous
        for place in places:
            if symbol[place] != left or symbol[following[place]] != right:
                continue  # stale: one of the two was joined to something else
            after, weight = following[place], self.weight[place]
            before, beyond = previous[place], following[after]
            self._lose(symbol[before], left, weight)
            self._lose(right, symbol[beyond], weight)
            symbol[place], symbol[after] = new, BARRIER
            following[place], previous[beyond] = beyond, place
            self._gain(symbol[before], new, before)
            self._gain(new, symbol[beyond], place)
