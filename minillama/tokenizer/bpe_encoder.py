"""Encoding with a SentencePiece BPE model, in plain Python: normalise, cut, join by score, fall back to bytes.

SentencePiece runs one heap over the whole text. In LLaMA's vocabulary no piece has U+2581 after another character, so
the text falls into words, whose ids are kept. The compiled core also cuts inside words.
"""

import re
import struct

from .bpe import join_pairs, remember_words
from .word_counts import SPACE, encode_utf8

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MATCHABLE = (NORMAL, USER_DEFINED, UNUSED)  # only these are ever found in a text
MAX_DEPTH = 100  # SentencePiece splits unused pieces to this depth only


def rank_of(score):
    """Sort key of a float32 score, smaller is better: the order of its bits, so that -0.0 is worse than 0.0."""
    bits = struct.unpack("<I", struct.pack("<f", score))[0]
    return bits & 0x7FFFFFFF if bits >> 31 else -bits - 1


def own_pattern(pieces):
    """A regular expression for the strings of user-defined pieces, the longest first; None if there are none."""
    own = [text for text, _, kind in pieces if kind == USER_DEFINED]
    longest_first = sorted(own, key=lambda text: (-len(text), text))
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if own else None


def cut_units(text, own):
    """Characters, but the strings of user-defined pieces in one; `own`: what `own_pattern` gave."""
    units = []
    for place, part in enumerate(own.split(text) if own else [text]):
        units += [part] if place % 2 else part  # every second part is a match
    return units


def whitespace_normalizer(pieces, rules):
    """The function from text to what the pieces are matched against: by the rules, a space in front or behind, spaces
    made visible, extra ones removed. ValueError for a lone surrogate.
    """
    own = own_pattern(pieces)
    space = SPACE if rules.escape_whitespaces else " "

    def normalize(text):
        encode_utf8(text)  # refuses lone surrogates
        text = rules.character_map.replace(text, own) if rules.character_map else text
        if rules.remove_extra_whitespaces:
            units = cut_units(text, own)
            if all(unit == " " for unit in units):
                return ""
            text = _without_extra_spaces(units)
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


def _without_extra_spaces(units):
    """Join the units; after a unit that ends with a space the next one's leading spaces go."""
    kept, after_space = [], True
    for unit in units:
        unit = unit.lstrip(" ") if after_space else unit
        kept.append(unit)
        after_space = unit.endswith(" ") if unit else after_space
    return "".join(kept)


class PieceEncoder:
    """Ids by a function `segment` from a normalised text to its pieces.

    pieces: [(text, score, kind)] by id; `unk_id` -1 if there is none; `rules` as in `sentencepiece.Rules`.
    """

    def __init__(self, pieces, unk_id, rules):
        self.unk_id, self.rules, self.normalize = unk_id, rules, whitespace_normalizer(pieces, rules)
        self.own, self.all_ids = own_pattern(pieces), {text: i for i, (text, _, _) in enumerate(pieces)}
        self.id_of = {text: i for text, i in self.all_ids.items() if pieces[i][2] in MATCHABLE and text != "\0"}

    def encode(self, text):
        """The ids of a text."""
        return self.ids(self.segment(self.normalize(text)))

    def ids(self, segmentation):
        """The ids of these pieces (an id stands for itself); what is no piece becomes its bytes, or <unk>, a run of
        which is one."""
        ids = []
        for part in segmentation:
            known = part if isinstance(part, int) else self.id_of.get(part)
            if known is not None:
                ids.append(known)
            elif self.rules.byte_fallback:
                ids += [self.all_ids[f"<0x{byte:02X}>"] for byte in part.encode()]
            elif not ids or ids[-1] != self.unk_id:
                ids.append(self.unk_id)
        return ids


class BpeEncoder(PieceEncoder):
    """Neighbours are joined by score. Arguments as for `PieceEncoder`."""

    def __init__(self, pieces, unk_id, rules):
        super().__init__(pieces, unk_id, rules)
        self.rank = {text: rank_of(pieces[i][1]) for text, i in self.id_of.items()}
        self.longest = max(map(len, self.id_of), default=0)
        inner_space = any(re.search(f"[^{SPACE}]{SPACE}", text) for text in self.id_of)
        self.unused = {text for text, i in self.id_of.items() if pieces[i][2] == UNUSED}
        self.id_of = {text: i for text, i in self.id_of.items() if text not in self.unused}
        self.word = None if inner_space else re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
        self.ids_of_word = remember_words(lambda word: self.ids(self.segment(word)))

    def encode(self, text):
        """The ids of a text, word by word."""
        text = self.normalize(text)
        if self.unused:  # how an unused piece is split depends on the whole text: no cuts
            return self.ids(self.segment(text))
        ids = []
        for word in self.word.findall(text) if self.word else (text,):
            found = self.ids_of_word(word)
            if ids and found and ids[-1] == found[0] == self.unk_id:
                found = found[1:]  # a run of unknowns is one <unk>
            ids += found
        return ids

    def segment(self, text):
        parts = cut_units(text, self.own)
        frozen = {place for place, part in enumerate(parts) if self.own.fullmatch(part)} if self.own else ()
        halves = {}  # of what could be joined: the two parts it was last seen as

        def rank_below(left, right):
            key = self.rank.get(left + right) if len(left) + len(right) <= self.longest else None
            if key is not None and self.unused:
                halves[left + right] = left, right
            return key

        joined = join_pairs(parts, rank_below, frozen)
        return [part for whole in joined for part in self._split_unused(whole, halves)] if self.unused else joined

    def _split_unused(self, part, halves, depth=0):
        """The part, or those that it was joined of where it is an unused piece."""
        if part in self.unused and depth > MAX_DEPTH:
            return [self.all_ids[part]]
        if part not in self.unused or part not in halves:
            return [part]
        left, right = halves[part]
        return self._split_unused(left, halves, depth + 1) + self._split_unused(right, halves, depth + 1)
