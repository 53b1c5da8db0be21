"""Exercise 01, solved: learn byte-pair merges."""


def merge_once(symbols, pair):
    """Join every occurrence of `pair` in one word, from left to right."""
    joined, place = [], 0
    while place < len(symbols):
        if symbols[place:place + 2] == pair:
            joined.append(pair[0] + pair[1])
            place += 2
        else:
            joined.append(symbols[place])
            place += 1
    return tuple(joined)


def learn(word_counts, n):
    """The first n merges, [(left, right), ...], from {word (str): how often it occurs}."""
    words = {(*word, "</w>"): count for word, count in word_counts.items()}
    merges = []
    for _ in range(n):
        pairs = {}
        for symbols, count in words.items():
            for pair in zip(symbols[:-1], symbols[1:], strict=True):
                pairs[pair] = pairs.get(pair, 0) + count
        if not pairs:
            break
        best = max(pairs, key=pairs.get)  # max keeps the first of equals
        merges.append(best)
        words = {merge_once(symbols, best): count for symbols, count in words.items()}
    return merges
