"""Subword regularization (Kudo 2018, arXiv:1804.10959): a text is cut in another way each time that it is read, as a
unigram model draws it. A model that sees a word cut in several ways learns that they are the same word.

A segmentation is a path through the lattice of `tokenizer.unigram`.
"""

import math
import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from minillama.tokenizer.unigram import parts, path_sums
from minillama.train.data import Batches, Tokens


def draw_segmentation(model, text, alpha, draw):
    """Pieces of a `UnigramModel`, drawn with probability proportional to p ** alpha. alpha is an inverse temperature: 0
    draws all segmentations alike, infinity would take the best. draw: `random.Random`. From the end backwards, each
    piece is drawn by its share of the sum over all paths to its end."""
    lattice = model.lattice(text)
    sums, path = path_sums(lattice, alpha), [len(text)]
    while path[-1]:
        edges = lattice[path[-1]]
        shares = [math.exp(sums[start] + alpha * score - sums[path[-1]]) for start, score in edges]
        path.append(draw.choices([start for start, _ in edges], shares)[0])
    return parts(text, path[::-1])


def require_unigram(tokenizer, alpha=0.0):
    """ValueError for a tokenizer of another type, which gives segmentations no probabilities; alpha None: for none."""
    kind = getattr(getattr(tokenizer, "rules", None), "model_type", type(tokenizer).__name__)
    if kind != "unigram" and alpha is not None:
        raise ValueError(f"subword_sampling needs a unigram model, and the tokenizer is of type {kind}: only a unigram "
                         "model draws segmentations; train one with tokenizer train --type unigram")


def sample_ids(tokenizer, text, alpha, draw):
    """Like `tokenizer.encode(text)`, of a drawn segmentation. ValueError for a type other than unigram."""
    require_unigram(tokenizer)
    ids = []
    for place, part in enumerate(tokenizer.split_added(text)):
        if isinstance(part, str):
            encoder = tokenizer.encoder_of(tokenizer.puts_space(part, place > 0))
            ids += encoder.ids(draw_segmentation(encoder.model, encoder.normalize(part), alpha, draw))
        else:
            ids.append(part.id)
    return ids


def documents_of(tokens, tokenizer):
    """The texts that `data.write_tokens` made a row of; empty ones are left out. ValueError for one whose ids are not
    those of its text: what is <unk> there is lost."""
    found = [[]]
    for index in tokens.ids.tolist():
        if index not in (tokenizer.bos_id, tokenizer.eos_id):
            found[-1].append(index)
        elif found[-1]:
            found.append([])
    texts = [tokenizer.decode(ids) for ids in found if ids]
    for number, (text, ids) in enumerate(zip(texts, found, strict=False)):
        if tokenizer.encode(text) != ids:
            raise ValueError(f"document {number}, {text[:40]!r}, has other ids than its text, so it cannot be cut "
                             "anew: use a tokenizer with byte fallback, without normalization")
    return texts


@dataclass(frozen=True, eq=False)
class SampledTokens(Tokens):
    """A row of tokens that is drawn anew in each epoch (`SampledBatches`)."""

    tokenizer: Any = None
    alpha: float = 1.0

    def fingerprint(self):
        """CRC-32 of all ids of the best segmentations, and of alpha."""
        return zlib.crc32(f"{super().fingerprint()} {self.alpha}".encode())


def sample_subwords(tokens, tokenizer, alpha):
    """`Tokens`, or all those of a `mixture.Mixture`, as `SampledTokens`; as they are where alpha is None."""
    if alpha is None:
        return tokens
    if not isinstance(tokens, Tokens):
        return tokens._replace(tokens=[sample_subwords(each, tokenizer, alpha) for each in tokens.tokens])
    return SampledTokens(tokens.ids, tokens.vocab_size, tokens.documents, tokens.characters, tokenizer, alpha)


class SampledBatches:
    """Like `data.Batches`, a pure function of (seed, step), but each epoch reads a row that is drawn anew.

    In epoch e, document n is drawn by random.Random(f"{seed} {e} {n}"). Rows differ in length: an epoch is W windows,
    as many as of the row of best segmentations, and of a longer row a permutation's first W.
    """

    def __init__(self, tokens, batch_size, seq_len, seed):
        tokenizer, alpha = tokens.tokenizer, tokens.alpha
        self.batch_size, self.n_windows = batch_size, Batches(tokens, batch_size, seq_len, seed).n_windows
        documents, ends = documents_of(tokens, tokenizer), ([tokenizer.bos_id], [tokenizer.eos_id])
        front, back = ([index for index in end if index is not None] for end in ends)

        def draw_epoch(epoch):
            ids = []
            for number, text in enumerate(documents):
                ids += front + sample_ids(tokenizer, text, alpha, random.Random(f"{seed} {epoch} {number}")) + back
            return Batches(Tokens(np.array(ids), tokens.vocab_size), 1, seq_len, seed)

        self._epoch = lru_cache(maxsize=2)(draw_epoch)

    def __call__(self, step):
        windows = []
        for i in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, place = divmod(i, self.n_windows)
            row = self._epoch(epoch)
            windows.append(row(epoch * row.n_windows + place))
        return tuple(torch.cat(parts) for parts in zip(*windows, strict=True))
