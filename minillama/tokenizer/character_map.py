"""A SentencePiece model's table of character replacements (its normalizer_spec's precompiled_charsmap), such as
nmt_nfkc, by which T5, ALBERT, XLNet and Marian read text: full-width letters become plain ones, ligatures are taken
apart, an accent joins its letter, control characters go (google/sentencepiece, src/normalizer.cc).

The table is the size of a trie in bytes, 4 bytes, little-endian; the trie; the replacements, each ended by a zero byte.
The trie is a double array (Aoe, 1989; here as in Darts-clone) of 32-bit units:

    bits 0 to 7    the byte by which the unit is reached, with bit 31: where that is set, the unit is a value
    bit 8          whether a key ends here: the unit at its offset holds where its replacement begins
    bits 10 to 31  the offset of its children (times 256 where bit 9 is set); that of byte b is at place ^ offset ^ b
"""

import numpy as np

LABEL, ENDS, FAR, VALUE = 0x800000FF, 1 << 8, 1 << 9, 0x7FFFFFFF


class CharacterMap:
    """Replacements of the longest keys, from left to right. ValueError for a table that is damaged."""

    def __init__(self, table):
        size = int.from_bytes(table[:4], "little")
        if size % 4 or not 4 <= size <= len(table) - 4 or table[-1] != 0:
            raise ValueError(f"the model's precompiled_charsmap is damaged: a trie of {size} bytes in {len(table)}")
        self.units = np.frombuffer(table[4:4 + size], "<u4").tolist()
        self.replacements, self.steps = table[4 + size:], {}

    def replace(self, text, own=None):
        """The text with each longest key replaced. own: a pattern of what stays as it is, pieces that a user defined.

        Where a key begins at a character, the longest one counts; what follows it is read on its own.
        """
        out, at = [], 0
        while at < len(text):
            kept = own.match(text, at) if own else None
            if kept and kept[0]:
                found, end = kept[0], kept.end()
            else:
                found, end = self.longest(text, at)
            out.append(found)
            at = end
        return "".join(out)

    def longest(self, text, at):
        """(replacement of the longest key that begins there, its end); the character itself where none does."""
        found, end, node = text[at], at + 1, 0
        for place in range(at, len(text)):
            node, replacement = self.step(node, text[place])
            if replacement is not None:
                found, end = replacement, place + 1
            if node is None:
                break
        return found, end

    def step(self, node, character):
        """(the node that a character leads to, None where there is none; the replacement of a key that ends there)."""
        if (node, character) not in self.steps:
            self.steps[node, character] = self._walk(node, character.encode())
        return self.steps[node, character]

    def _walk(self, node, data):
        place, unit = node, self._unit(node)
        for byte in data:
            place = place ^ self._offset(unit) ^ byte
            unit = self._unit(place)
            if unit & LABEL != byte:
                return None, None
        return place, self._replacement(self._unit(place ^ self._offset(unit))) if unit & ENDS else None

    def _unit(self, place):
        if place >= len(self.units):
            raise ValueError(f"the model's precompiled_charsmap is damaged: its trie points at unit {place} of "
                             f"{len(self.units)}")
        return self.units[place]

    def _offset(self, unit):
        return unit >> 10 << (8 if unit & FAR else 0)

    def _replacement(self, unit):
        begin = unit & VALUE
        if begin >= len(self.replacements):
            raise ValueError(f"the model's precompiled_charsmap is damaged: a replacement begins at byte {begin} of "
                             f"{len(self.replacements)}")
        return self.replacements[begin:self.replacements.index(0, begin)].decode("utf-8", "replace")


def require_plain_bpe(rules, form):
    """ValueError where the rules of a SentencePiece model are of another type, or replace characters, which files of
    that form do not say."""
    if rules.model_type != "bpe" or rules.character_map:
        raise ValueError(f"{form} holds bpe vocabularies that replace no characters, not one of type {rules.model_type}"
                         f"{' that replaces characters' * bool(rules.character_map)}")
