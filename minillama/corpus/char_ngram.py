"""Baselines for bits per character: an interpolated Witten-Bell n-gram of characters, and xz.

Witten and Bell (1991), "The zero-frequency problem", method C, in the interpolated form of Chen and Goodman (1998),
"An empirical study of smoothing techniques for language modeling", section 2.5:

    p_k(c | h) = (count(h c) + T(h) p_{k-1}(c | h')) / (count(h) + T(h))

h is the context of the last k characters, h' the same without its oldest, count(h) how often h was followed by
anything and T(h) by how many different characters. A context never seen passes p_{k-1} through. Below the empty
context lies p_{-1} = 1 / 1,112,064, uniform over all Unicode scalar values, so that every text has a probability and
the probabilities sum to one without an "unknown" character.
"""

import lzma

import numpy as np

from minillama.config_checks import Range, check

UNICODE_SCALARS = 0x110000 - 2048  # code points without the surrogates


class CharNgram:
    """A character model of order n: it looks at n - 1 characters to predict the next (order 3: trigrams).

    `fit` and `bits_per_character` take one string; join documents by a newline to count their ends as well.
    """

    def __init__(self, order):
        check("order", order, int, Range(1, 20))
        self.order = order

    def fit(self, text):
        """Count the n-grams of `text`, all orders up to n; a few seconds for 2 million characters."""
        if not text:
            raise ValueError("cannot fit on an empty text")
        codes = _codes(text)
        self._alphabet = np.unique(codes)
        self._levels = []  # per context length k: sorted keys (context, character), their counts, count(h), T(h)
        letters, context, contexts = np.searchsorted(self._alphabet, codes), np.zeros(len(codes), np.int64), 1
        for k in range(self.order):
            keys, gram, counts = np.unique(context * len(self._alphabet) + letters[k:], return_inverse=True,
                                           return_counts=True)
            followed = keys // len(self._alphabet)
            self._levels.append((keys, counts, np.bincount(followed, counts, contexts),
                                 np.bincount(followed, minlength=contexts)))
            context, contexts = gram[:-1], len(keys)  # gram i ends at character k + i: context of the one after
        return self

    def probabilities(self, text):
        """p(character | the characters before it) for every character of `text`, float64 of its length."""
        codes = _codes(text)
        letters = np.searchsorted(self._alphabet, codes).clip(max=len(self._alphabet) - 1)
        known = self._alphabet[letters] == codes
        p = np.full(len(codes), 1 / UNICODE_SCALARS)
        context = np.zeros(len(codes), np.int64)  # number of the k characters before each place; -1: never seen
        for keys, counts, totals, kinds in self._levels:
            key = np.where(known & (context >= 0), context * len(self._alphabet) + letters, -1)
            gram = np.searchsorted(keys, key).clip(max=len(keys) - 1)
            seen = keys[gram] == key
            total, kind = totals[context], kinds[context]
            usable = (context >= 0) & (total > 0)
            p = np.where(usable, (np.where(seen, counts[gram], 0) + kind * p) / np.maximum(total + kind, 1), p)
            context = np.concatenate([[-1], np.where(seen, gram, -1)[:-1]])  # the first has no longer context
        return p

    def bits_per_character(self, text):
        """Mean of -log2 p over the characters of `text`."""
        if not text:
            raise ValueError("an empty text has no bits per character")
        return float(-np.log2(self.probabilities(text)).mean())


def _codes(text):
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is {text[error.start]!r}, half a surrogate pair") from None


def xz_bits_per_character(held_out, train=""):
    """Bits per character of `held_out` once xz (preset 9, extreme) has read `train`: what the archive grows by.

    8 (len(xz(train + held_out)) - len(xz(train))) / characters; without `train`, the plain archive of `held_out`.
    xz reaches back 64 MiB at this preset, so `train` may be as long.
    """
    if not held_out:
        raise ValueError("an empty text has no bits per character")

    def size(text):
        return len(lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)) if text else 0

    return 8 * (size(train + held_out) - size(train)) / len(held_out)
