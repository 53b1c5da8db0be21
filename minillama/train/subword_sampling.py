"""Subword regularization (Kudo 2018, arXiv:1804.10959): a text is cut in another way each time that it is read, as a
unigram model draws it. A model that sees a word cut in several ways learns that they are the same word.

A segmentation is a path through the lattice of `tokenizer.unigram`.
"""

import heapq
import math

from minillama.tokenizer.unigram import parts, path_sums


def random_path(lattice, alpha, draw):
    """A path drawn from the end backwards: each edge by its share of the sum over all paths to its end."""
    sums, path = path_sums(lattice, alpha), [len(lattice) - 1]
    while path[-1]:
        edges = lattice[path[-1]]
        shares = [math.exp(sums[start] + alpha * score - sums[path[-1]]) for start, score in edges]
        path.append(draw.choices([start for start, _ in edges], shares)[0])
    return path[::-1]


def draw_segmentation(model, text, alpha, draw):
    """Pieces of a `UnigramModel`, drawn with probability proportional to p ** alpha. alpha is an inverse temperature: 0
    draws all segmentations alike, infinity would take the best. draw: `random.Random`."""
    return parts(text, random_path(model.lattice(text), alpha, draw))


def n_best_segmentations(model, text, n):
    """The n most probable segmentations: [(log p, pieces), ...], the best first. Each place keeps the n best ways to
    reach it."""
    ways, lattice = [[(0.0, (0,))]], model.lattice(text)
    for end in range(1, len(lattice)):
        found = [(total + score, (*path, end)) for start, score in lattice[end] for total, path in ways[start]]
        ways.append(heapq.nlargest(n, found))
    return [(score, parts(text, path)) for score, path in ways[-1]]


def sample_ids(tokenizer, text, alpha, draw):
    """Like `tokenizer.encode(text)`, of a drawn segmentation. ValueError for a tokenizer of another type than unigram,
    the only one that gives segmentations probabilities."""
    kind = getattr(getattr(tokenizer, "rules", None), "model_type", type(tokenizer).__name__)
    if kind != "unigram":
        raise ValueError(f"the tokenizer is of type {kind}: only a unigram model draws segmentations; train one with "
                         "tokenizer train --type unigram")
    encoder = tokenizer.encoder_of(tokenizer.puts_space(text))
    return encoder.ids(draw_segmentation(encoder.model, encoder.normalize(text), alpha, draw))
