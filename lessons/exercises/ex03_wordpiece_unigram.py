"""Exercise 03: WordPiece's score and cut, and Unigram's best cut (lesson 03)."""


def pair_scores(words):
    """WordPiece's score f(ab) / (f(a) f(b)) of each pair of neighbours, from {tuple of pieces: count of the word}: a
    dict {(a, b): score}. f counts occurrences in all words: f(a) of the piece a, f(ab) of a directly before b.
    """
    raise NotImplementedError("your code here")


def longest_match(word, vocabulary):
    """Cut a word as BERT does: the longest beginning that is in `vocabulary` (a set of str), then the longest beginning
    of the rest, and so on. Pieces that do not begin the word are looked up, and returned, with "##" in front.
    A list of str; ["[UNK]"] where some rest has no known beginning.
    """
    raise NotImplementedError("your code here")


def best_cut(word, log_p):
    """The most probable cut of a word: a list of pieces of `log_p` ({piece: log probability}) that make up the word,
    with the greatest sum. There is always one. Words may have 60 letters: do not try all cuts.
    """
    raise NotImplementedError("your code here")
