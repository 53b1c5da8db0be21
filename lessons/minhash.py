"""Near-duplicates among many documents, found without comparing each with each: MinHash and bands.

A document is the set of its shingles, runs of n words; of a script without spaces a character counts as a word. Two
documents share the Jaccard similarity J = |A and B| / |A or B|. The smallest of all shingles' hashes is equally likely
to be any of them, so it is the same in both documents with probability J (Broder 1997, "On the resemblance and
containment of documents"); k hash functions estimate J with a standard error of sqrt(J (1 - J) / k).

Only documents that agree in a whole band of r of these k numbers are compared (Leskovec, Rajaraman and Ullman, "Mining
of massive datasets", section 3.4): a pair meets with probability 1 - (1 - J^r)^(k / r).
"""

import functools
import hashlib
import re

import numpy as np

HAN_AND_KANA = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{HAN_AND_KANA}]|[^\s{HAN_AND_KANA}]+")
SHINGLE = 5  # words
HASHES, BAND = 126, 6  # 21 bands: at J = 0.8 a pair meets with probability 0.998, at 0.5 in 28 %, at 0.2 in 0.1 %
_salts = np.random.PCG64(0).random_raw(2 * HASHES).astype(np.uint64).reshape(2, HASHES, 1)
FACTORS, OFFSETS = _salts[0] | np.uint64(1), _salts[1]
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth, volume 3, section 6.4), odd


def words(text):
    """The words of a text in lower case: runs without white space, and single characters of Chinese and Japanese.

    >>> words("To be,  or 不是")
    ['to', 'be,', 'or', '不', '是']
    """
    return WORD.findall(text.lower())


@functools.lru_cache(maxsize=1 << 17)
def hash_word(word):
    """64 bits that depend on the word alone, equal in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_runs(codes, n):
    """uint64 hashes of all runs of n of the words with these hashes; of fewer words one run: (W,) -> (max(W-n+1, 1),)

    h <- (h xor word) * MIX, folded by its upper half, for each word of a run in turn.
    """
    n = min(n, len(codes))
    runs = np.zeros(len(codes) - n + 1, np.uint64)
    for i in range(n):
        runs = (runs ^ codes[i : i + len(runs)]) * MIX
        runs ^= runs >> np.uint64(29)
    return runs


def signature(runs):
    """(HASHES,) uint32: for each hash function the smallest value over a document's shingles, its upper 32 bits.

    The functions are a x + b modulo 2^64 with odd a (Dietzfelbinger et al. 1997).
    """
    return ((FACTORS * runs + OFFSETS).min(axis=1) >> np.uint64(32)).astype(np.uint32)


def estimate_jaccard(one, other):
    """The share of equal numbers in two signatures, or of each pair in two arrays of them."""
    return (one == other).mean(axis=-1)


def find_near_duplicates(signatures, similarity):
    """For each document the number of an earlier one that it is nearly equal to, or -1: (N, HASHES) -> (N,) int64.

    Within a band that several documents share, each is compared with the first and with the one before it. Copies of
    copies count: who is like a document that goes, goes as well.
    """
    earlier = np.full(len(signatures), -1, np.int64)
    for start in range(0, HASHES, BAND):
        band = np.ascontiguousarray(signatures[:, start : start + BAND]).view(f"V{4 * BAND}").ravel()
        order = np.argsort(band, kind="stable")  # equal bands lie together, earlier documents first
        is_first = np.ones(len(order), bool)
        is_first[1:] = band[order[1:]] != band[order[:-1]]
        firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
        before = np.roll(order, 1)
        for rival in (firsts, before):
            pairs = ~is_first & (earlier[order] < 0)
            here, there = order[pairs], rival[pairs]
            alike = estimate_jaccard(signatures[here], signatures[there]) >= similarity
            earlier[here[alike]] = there[alike]
    return earlier
