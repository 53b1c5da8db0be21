"""Byte-pair encoding (BPE): learning a tokenizer's merges (which symbols to join), and joining them.

The original form (Sennrich, Haddow, Birch 2016, arXiv:1508.07909, algorithm 1) ends words with "</w>" and replays the
merges in the order in which they were learnt. LLaMA's is SentencePiece's: words begin with U+2581, and a text is
encoded by joining the pair with the best score first (`join_pairs`). Its pieces are learnt in `piece_trainer`.
"""

import functools
import heapq
from collections import Counter

END = "</w>"
CACHE_WORDS, CACHE_LENGTH = 1 << 16, 64  # words of at most so many characters are remembered, up to so many


def sennrich_merges(word_counts, n):
    """Learn up to n merges, [(left, right), ...], from {word: count}; words are characters followed by "</w>".

    The most frequent pair is joined in all words, n times (arXiv:1508.07909, algorithm 1). Of equally frequent
    pairs the one met first wins, reading the words in the given order.

    >>> sennrich_merges({"low": 5, "lower": 2, "newest": 6, "widest": 3}, 5)
    [('e', 's'), ('es', 't'), ('est', '</w>'), ('l', 'o'), ('lo', 'w')]
    """
    words, merges = {(*word, END): count for word, count in word_counts.items()}, []
    while len(merges) < n:
        pairs = Counter()
        for symbols, count in words.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        pair = max(pairs, key=pairs.get)  # max keeps the first of equals
        merges.append(pair)
        words = {join_pair(symbols, pair, "".join(pair)): count for symbols, count in words.items()}
    return merges


def join_pair(symbols, pair, new):
    """The tuple of symbols with `new` in the place of each occurrence of the pair, left to right."""
    joined, place = [], 0
    while place < len(symbols):
        if symbols[place : place + 2] == pair:
            joined.append(new)
            place += 2
        else:
            joined.append(symbols[place])
            place += 1
    return tuple(joined)


def sennrich_encode(word, merges):
    """Cut one word by replaying the merges in the order in which they were learnt.

    >>> sennrich_encode("lowest", [("e", "s"), ("es", "t"), ("est", "</w>"), ("l", "o"), ("lo", "w")])
    ['low', 'est</w>']
    """
    symbols = (*word, END)
    for pair in merges:
        symbols = join_pair(symbols, pair, "".join(pair))
    return list(symbols)


def join_pairs(parts, rank_of, frozen=()):
    """Join neighbours until no pair has a rank: the lowest rank first, of equals the leftmost.

    parts: list of str or of bytes; rank_of(left, right): a sort key, or None where the two stay apart; frozen: places
    of parts that stay alone. Cost O(n log n): a heap of candidate pairs, where a stale one shows by its length.
    """
    parts, size = list(parts), len(parts)
    following, previous, heap = list(range(1, size + 1)), list(range(-1, size - 1)), []

    def consider(left, right):
        if left >= 0 and right < size and left not in frozen and right not in frozen:
            rank = rank_of(parts[left], parts[right])
            if rank is not None:
                heapq.heappush(heap, (rank, left, right, len(parts[left]) + len(parts[right])))

    for left in range(size - 1):
        consider(left, left + 1)
    while heap:
        _, left, right, length = heapq.heappop(heap)
        if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != length:
            continue
        parts[left], parts[right] = parts[left] + parts[right], parts[right][:0]
        beyond = following[left] = following[right]
        if beyond < size:
            previous[beyond] = left
        consider(previous[left], left)
        consider(left, beyond)
    return [part for part in parts if part]


def remember_words(find):
    """The function `find` of a word with a memory of up to `CACHE_WORDS` words, in its attribute `cache_info`."""
    remembered = functools.lru_cache(CACHE_WORDS)(find)

    def find_word(word):
        return remembered(word) if len(word) <= CACHE_LENGTH else find(word)

    find_word.cache_info = remembered.cache_info
    return find_word
