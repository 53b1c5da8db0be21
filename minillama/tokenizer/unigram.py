"""The unigram language model (Kudo 2018, arXiv:1804.10959): each piece has a probability, and the probability of a
segmentation is the product of its pieces'. A text has many segmentations: the best is found here, and others in
`train.subword_sampling`.

All of them are paths through a lattice, `lattice[end] = [(start, log p), ...]`: the pieces text[start:end] that end at
each place. A character that is no piece is an edge too, worth less than any piece.
"""

import math
from array import array
from itertools import pairwise

from .bpe_encoder import NORMAL, USER_DEFINED, PieceEncoder
from .unigram_steps import add_up
from .word_counts import float32

UNKNOWN_PENALTY = 10.0  # SentencePiece's: an unknown character has log p = the lowest of all pieces' less this


class UnigramModel:
    """log_p: {piece: log probability}; `unknown`: the log probability of a character that is no piece."""

    def __init__(self, log_p, unknown=None):
        self.log_p, self.longest = log_p, max(map(len, log_p), default=1)
        self.unknown = min(log_p.values(), default=0.0) - UNKNOWN_PENALTY if unknown is None else unknown

    def lattice(self, text):
        """For each place in the text, the pieces that end there: [(start, log p), ...], the longest first."""
        ends, find = [[] for _ in range(len(text) + 1)], self.log_p.get
        for start in range(len(text)):
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                score = find(text[start:end])
                if score is not None:
                    ends[end].append((start, score))
            if text[start] not in self.log_p:
                ends[start + 1].append((start, self.unknown))
        return ends

    def segment(self, text):
        """The most probable segmentation (Viterbi), as a list of pieces.

        >>> UnigramModel({"a": -1.0, "b": -1.0, "ab": -1.5, "ba": -3.0}).segment("aba")
        ['ab', 'a']
        """
        return parts(text, best_path(self.lattice(text)))

    def log_likelihood(self, text):
        """log p of a text: the sum over all its segmentations."""
        return path_sums(self.lattice(text))[-1]


def parts(text, path):
    """The pieces of a path, given by the places where they begin and end."""
    return [text[start:end] for start, end in pairwise(path)]


def best_path(lattice):
    """The places of the best path. Sums are kept as 32-bit floats, as SentencePiece does, so that ties fall alike; of
    equals the one with the earlier start, which is to say the longer last piece, wins."""
    best, back = array("f", bytes(4 * len(lattice) + 4)), [0] * len(lattice)
    for end in range(1, len(lattice)):
        best[end] = -math.inf
        for start, score in lattice[end]:
            best[-1] = best[start] + score  # the last place rounds
            if best[-1] > best[end]:
                best[end], back[end] = best[-1], start
    path = [len(lattice) - 1]
    while path[-1]:
        path.append(back[path[-1]])
    return path[::-1]


def log_sum(terms):
    """log(exp(a) + exp(b) + ...) without overflow."""
    top = max(terms)
    return top + math.log(add_up([math.exp(term - top) for term in terms]))


def path_sums(lattice, alpha=1.0):
    """For each place, log of the sum of p ** alpha over all paths that lead there."""
    sums = [0.0]
    for edges in lattice[1:]:
        sums.append(log_sum([sums[start] + alpha * score for start, score in edges]))
    return sums


def edge_probabilities(lattice):
    """Yield (start, end, probability that a random segmentation has this piece): forward and backward sums."""
    sums, size = path_sums(lattice), len(lattice) - 1
    after = [[] for _ in lattice]  # of each place: logs of the sums over all paths from it to the end
    after[size] = [0.0]
    for end in range(size, 0, -1):
        rest = log_sum(after[end]) if after[end] else -math.inf
        for start, score in lattice[end]:
            after[start].append(score + rest)
            yield start, end, math.exp(sums[start] + score + rest - sums[size])


class UnigramEncoder(PieceEncoder):
    """The ids of a text by a SentencePiece unigram model; arguments as for `bpe_encoder.BpeEncoder`."""

    def __init__(self, pieces, unk_id, rules):
        super().__init__(pieces, unk_id, rules)
        self.id_of = {text: i for i, (text, _, kind) in enumerate(pieces) if kind in (NORMAL, USER_DEFINED)}
        normal = [score for _, score, kind in pieces if kind == NORMAL]
        log_p = {text: pieces[i][1] for text, i in self.id_of.items()}
        for text, i in self.id_of.items():
            if pieces[i][2] == USER_DEFINED:  # as SentencePiece 0.2.3 has it: better than any pieces of its letters
                log_p[text] = float32(0.1 * (len(text.encode()) - 1))
        self.model = UnigramModel(log_p, min(normal, default=0.0) - UNKNOWN_PENALTY)
        self.segment = self.model.segment
