"""Exercise 01: learn byte-pair merges (lesson 01).

A word is a tuple of symbols, at first its characters and the end mark "</w>": ("l", "o", "w", "</w>"). Learning means:
count all pairs of neighbours, join the most frequent pair in every word, and again.
"""


def merge_once(symbols, pair):
    """Join every occurrence of `pair` in one word, from left to right.

    symbols: tuple of str; pair: (left, right). Returns a tuple of str. Occurrences do not overlap: ("a", "a", "a")
    with ("a", "a") is ("aa", "a").
    """
    raise NotImplementedError("your code here")


def learn(word_counts, n):
    """The first n merges, [(left, right), ...], from {word (str): how often it occurs}.

    Each word becomes its characters and "</w>". Of equally frequent pairs the one met first wins, reading the words in
    the order of the dict and each word from the left. Fewer than n merges are returned when no pair is left.
    """
    raise NotImplementedError("your code here")
