"""Encoding with a SentencePiece BPE model, in plain Python: normalise, cut, join by score, fall back to bytes.

SentencePiece runs one heap over the whole text. Two characters that stand side by side in no piece can never end up
in one token, so a cut between them changes nothing; in LLaMA's vocabulary no piece has U+2581 after another
character, so the text falls into words, and the words into a cache.
"""

import re
import struct

from .bpe import join_by_rank
from .word_counts import SPACE, encode_utf8

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MATCHABLE = (NORMAL, USER_DEFINED, UNUSED)  # only these are ever found in a text
CACHE_WORDS = 1 << 16  # the cache is emptied when it holds this many words ...
CACHE_LENGTH = 64  # ... of at most so many characters
MAX_DEPTH = 100  # SentencePiece splits unused pieces to this depth only


def rank_of(score):
    """Sort key of a float32 score, smaller is better: the order of its bits, so that -0.0 is worse than 0.0."""
    bits = struct.unpack("<I", struct.pack("<f", score))[0]
    return bits & 0x7FFFFFFF if bits >> 31 else -bits - 1


def own_pattern(pieces):
    """A regular expression for the strings of user-defined pieces, the longest first; None if there are none."""
    own = [text for text, _, kind in pieces if kind == USER_DEFINED]
    longest_first = sorted(own, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if own else None


def whitespace_normalizer(pieces, rules):
    """The function from text to what the pieces are matched against: by the rules, a space in front or behind, spaces
    made visible, extra ones removed. ValueError for a lone surrogate.
    """
    own = own_pattern(pieces)
    space = SPACE if rules.escape_whitespaces else " "

    def normalize(text):
        encode_utf8(text)  # refuses lone surrogates
        if rules.remove_extra_whitespaces:
            units = _units(text, own)
            text = _without_extra_spaces(units)
            if not units:
                return ""
        elif not text:
            return ""
        text = text.replace(" ", space)
        if rules.add_dummy_prefix and not rules.treat_whitespace_as_suffix:
            text = space + text
        if rules.remove_extra_whitespaces:
            text = text.rstrip(space)
        if rules.add_dummy_prefix and rules.treat_whitespace_as_suffix:
            text += space
        return text

    return normalize


def _units(text, own):
    """Characters, the strings of user-defined pieces in one, without the spaces in front."""
    units, place = [], 0
    for match in own.finditer(text) if own else ():
        units += [*text[place : match.start()], match[0]]
        place = match.end()
    units += text[place:]
    first = next((i for i, unit in enumerate(units) if unit != " "), len(units))
    return units[first:]


def _without_extra_spaces(units):
    """Join the units; after a unit that ends with a space the next one's leading spaces go."""
    kept, after_space = [], True
    for unit in units:
        unit = unit.lstrip(" ") if after_space else unit
        kept.append(unit)
        after_space = unit.endswith(" ") if unit else after_space
    return "".join(kept)


class BpeEncoder:
    """pieces: [(text, score, kind)] by id; `unk_id` -1 if there is none; `rules` as in `sentencepiece.Rules`."""

    def __init__(self, pieces, unk_id, rules):
        self.unk_id, self.rules = unk_id, rules
        self.id_of = {text: i for i, (text, _, kind) in enumerate(pieces) if kind in MATCHABLE and text != "\0"}
        self.rank = {text: rank_of(pieces[i][1]) for text, i in self.id_of.items()}
        self.longest = max(map(len, self.id_of), default=0)
        self.byte_ids = {int(text[3:5], 16): i for i, (text, _, kind) in enumerate(pieces) if kind == BYTE}
        self.unused = {i for i in self.id_of.values() if pieces[i][2] == UNUSED}
        self.own, self.normalize = own_pattern(pieces), whitespace_normalizer(pieces, rules)
        self.neighbours = {text[i : i + 2] for text in self.id_of for i in range(len(text) - 1)}
        inner_space = any(pair[1] == SPACE != pair[0] for pair in self.neighbours)
        self.word = None if inner_space else re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
        self.cache = {}

    def encode(self, text):
        """The ids of a text."""
        text = self.normalize(text)
        if self.unused:  # how an unused piece is split depends on the whole text: no cuts
            return self._encode_segment(text)
        ids, cache = [], self.cache
        for word in self.word.findall(text) if self.word else (text,):
            found = cache.get(word)
            if found is None:
                found = self._encode_word(word)
            if ids and found and ids[-1] == found[0] == self.unk_id:
                found = found[1:]  # a run of unknowns is one <unk>
            ids += found
        return ids

    def _encode_word(self, word):
        if len(word) <= CACHE_LENGTH:
            return self._remember(word)
        ids = []
        for segment in self._segments(word):
            found = self._remember(segment) if len(segment) <= CACHE_LENGTH else self._encode_segment(segment)
            if ids and ids[-1] == found[0] == self.unk_id:
                found = found[1:]
            ids += found
        return ids

    def _segments(self, word):
        """Cut a word between all characters that are neighbours in no piece."""
        start, neighbours = 0, self.neighbours
        for place in range(1, len(word)):
            if word[place - 1 : place + 1] not in neighbours:
                yield word[start:place]
                start = place
        yield word[start:]

    def _remember(self, segment):
        found = self.cache.get(segment)
        if found is None:
            if len(self.cache) >= CACHE_WORDS:
                self.cache.clear()
            found = self.cache[segment] = self._encode_segment(segment)
        return found

    def _encode_segment(self, segment):
        parts, frozen, halves = list(segment), (), ({} if self.unused else None)
        if self.own:
            parts, frozen = self._parts_with_own(segment)
        ids = []
        for part in join_by_rank(parts, self.rank, self.longest, frozen, halves):
            self._emit(part, halves, ids)
        return ids

    def _parts_with_own(self, segment):
        """Characters, but the strings of user-defined pieces (longest first) stay whole and frozen."""
        parts, frozen, place = [], set(), 0
        for match in self.own.finditer(segment):
            parts += segment[place : match.start()]
            frozen.add(len(parts))
            parts.append(match[0])
            place = match.end()
        return parts + list(segment[place:]), frozen

    def _emit(self, part, halves, ids):
        """Append the ids of one joined part: its own, its bytes', or <unk>; an unused piece falls apart again."""
        waiting = [(part, 0)]
        while waiting:
            part, depth = waiting.pop()
            known = self.id_of.get(part)
            if known in self.unused and depth <= MAX_DEPTH and part in halves:
                left, right = halves[part]
                waiting += [(right, depth + 1), (left, depth + 1)]
            elif known is not None and (known not in self.unused or depth > MAX_DEPTH):
                ids.append(known)
            elif self.rules.byte_fallback:
                ids += [self.byte_ids[byte] for byte in part.encode()]
            elif not ids or ids[-1] != self.unk_id:
                ids.append(self.unk_id)
