"""Exercise 03, solved: WordPiece's score and cut, and Unigram's best cut."""
from collections import Counter


def pair_scores(words):
    """f(ab) / (f(a) f(b)) of each pair of neighbours."""
    singles, pairs = Counter(), Counter()
    for pieces, count in words.items():
        for piece in pieces:
            singles[piece] += count
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += count
    return {(a, b): n / (singles[a] * singles[b]) for (a, b), n in pairs.items()}


def longest_match(word, vocabulary):
    """The longest known beginning first."""
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                pieces.append(piece)
                break
        else:
            return ["[UNK]"]
        start = end
    return pieces


def best_cut(word, log_p):
    """Viterbi: at each place, the best cut of the word up to there."""
    best = {0: (0.0, [])}
    for end in range(1, len(word) + 1):
        for start in range(end):
            piece = word[start:end]
            if piece in log_p and start in best:
                score = best[start][0] + log_p[piece]
                if end not in best or score > best[end][0]:
                    best[end] = score, [*best[start][1], piece]
    return best[len(word)][1]
