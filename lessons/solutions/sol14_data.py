"""Exercise 14, solved: pack documents without a look across their borders."""
import torch


def jaccard(a, b, n):
    """Share of common word n-grams."""
    a, b = a.split(), b.split()
    runs_a, runs_b = ({tuple(words[i:i + n]) for i in range(len(words) - n + 1)} for words in (a, b))
    if not runs_a | runs_b:
        return float(a == b)
    return len(runs_a & runs_b) / len(runs_a | runs_b)


def pack(documents, length, eos_id):
    """Documents joined end to end, eos_id behind each, cut every `length` tokens."""
    tokens, numbers = [], []
    for number, document in enumerate(documents):
        tokens += [*document, eos_id]
        numbers += [number] * (len(document) + 1)
    return [(torch.tensor(tokens[i:i + length]), torch.tensor(numbers[i:i + length]))
            for i in range(0, len(tokens), length)]


def may_see(numbers):
    """Which token may look at which: bool (T, T)."""
    same = numbers[:, None] == numbers[None, :]
    return same.tril()


def positions(numbers):
    """Place of each token in its own document, counted from 0 where it begins in this row."""
    places, count = [], 0
    for i, number in enumerate(numbers.tolist()):
        count = count + 1 if i and number == numbers[i - 1] else 0
        places.append(count)
    return torch.tensor(places)
