"""A mixture of sources: how often each is read is a decision, not a matter of how many files it has.

Every row of a batch is drawn from one source, with that source's share. An epoch is one reading of a source: a small
one with a large share is read several times, a large one perhaps not once (LLaMA's seven: arXiv 2302.13971, table 1).
A text without shares is a single source, and stays one row of tokens.
"""

import json
import math
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from minillama.corpus.text_files import check_texts, read_documents
from minillama.system.files import require_regular
from minillama.train import perplexity
from minillama.train.data import Batches, open_train_and_held_out, write_train_and_held_out
from minillama.train.data_parallel import is_main_process, wait_for_all
from minillama.train.subword_sampling import SampledBatches, SampledTokens


class Source(NamedTuple):
    """Texts with one share."""

    name: str
    share: float  # of the rows drawn, 0 to 1
    paths: list


class Mixture(NamedTuple):
    """Sources and the `Tokens` of each, in the same order: what `pretrain` takes in place of one row of tokens."""

    sources: list
    tokens: list

    @property
    def vocab_size(self):
        return self.tokens[0].vocab_size

    def fingerprint(self):
        """CRC-32 of names, shares and all ids: tells a resumed run that this is the same mixture."""
        facts = [(s.name, s.share, t.fingerprint()) for s, t in zip(self.sources, self.tokens, strict=True)]
        return zlib.crc32(json.dumps(facts).encode())


def find_sources(text, shares=None):
    """The sources of the file `shares`, or the paths `text` as the only one; every text is read once and checked."""
    sources = [Source("", 1.0, text)] if shares is None else read_shares(shares)
    for source in sources:
        check_texts(source.paths)
    return sources


def read_shares(path):
    """The `Source`s of a JSON object {"folder or file": per cent, ...}, its paths as seen from its own folder.

    ValueError in one line where it is none, for a share that is not above 0, shares that are not 100 together (to a
    hundredth), and a source that is named twice or lies inside another."""
    try:
        pairs = json.loads(Path(require_regular(path)).read_text("utf-8"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from None
    if not isinstance(pairs, tuple) or not pairs:
        raise ValueError(f'{path}: no shares: write {{"folder or file": per cent, ...}}')
    for name, share in pairs:
        if type(share) not in (int, float) or not 0 < share <= 100:
            raise ValueError(f"{path}: the share of {name!r} is {share!r:.40}: it must be a number above 0 and at most "
                             "100; leave out a source that is not to be read")
    total = math.fsum(share for _, share in pairs)
    if abs(total - 100) > 0.01:
        raise ValueError(f"{path}: the shares are {total:g} together, and must be 100 (per cent): change one of them")
    places = [(Path(path).parent / name).resolve() for name, _ in pairs]
    for i, place in enumerate(places):
        if any(place.is_relative_to(other) for other in places[:i] + places[i + 1:]):
            raise ValueError(f"{path}: {pairs[i][0]!r} is named twice or lies inside another source, and its text "
                             "would have two shares: name each source once")
    return [Source(name, share / total, [place]) for (name, share), place in zip(pairs, places, strict=True)]


def write_sources(folder, sources, tokenizer):
    """Tokenise each source into `folder` -> (train, held out): two `Mixture`s, or of a single text its two `Tokens`.
    A document's side depends on its text alone: none is learned from in one source and held out in another. Of several
    processes one writes; all read that once it is there."""
    for i, source in enumerate(sources if is_main_process() else ()):
        write_train_and_held_out(_place(folder, source, i), read_documents(source.paths), tokenizer)
    wait_for_all()
    pairs = [open_train_and_held_out(_place(folder, source, i), tokenizer) for i, source in enumerate(sources)]
    return tuple(Mixture(sources, list(side)) for side in zip(*pairs, strict=True)) if sources[0].name else pairs[0]


def _place(folder, source, number):
    return Path(folder, "sources", str(number)) if source.name else folder


class MixedBatches:
    """`Batches` of a `Mixture`: a pure function of (seed, step) too. Each source has its own order and epochs.

    Row k = 0, 1, ... of a source of share p is due at time (k + 1/2) / p, and all are drawn in the order of their
    times: of any n draws from the start, a source has n p, give or take 1/2 + p S / 2 with S sources."""

    def __init__(self, mixture, batch_size, seq_len, seed):
        self.batch_size, self.shares = batch_size, np.array([source.share for source in mixture.sources])
        for source, tokens in zip(mixture.sources, mixture.tokens, strict=True):
            if len(tokens) <= seq_len:
                raise ValueError(f"source {source.name!r} has {len(tokens)} tokens to learn from, too few for a row of "
                                 f"seq_len {seq_len}: give it more text, or use a shorter seq_len")
        self.rows = [batches_of(tokens, 1, seq_len, (seed, place)) for place, tokens in enumerate(mixture.tokens)]

    def __call__(self, step):
        drawn = self.draws(step * self.batch_size, (step + 1) * self.batch_size)
        return tuple(map(torch.cat, zip(*(self.rows[source](row) for _, source, row in drawn), strict=True)))

    def draws(self, first, end):
        """[(time, source, which of its rows)] of the draws first ... end - 1."""
        slack = len(self.shares)  # after n draws the time is n to within half of it
        low, high = (np.ceil(np.maximum(time * self.shares - 0.5, 0)).astype(int).tolist()  # rows due before a time
                     for time in (first - slack, end + slack))
        due = sorted(((row + 0.5) / share, source, row) for source, share in enumerate(self.shares.tolist())
                     for row in range(low[source], high[source]))
        return due[first - sum(low):end - sum(low)]


def batches_of(tokens, *how):
    """`data.Batches` of one row of tokens, `MixedBatches` of a mixture, `SampledBatches` of a row to be drawn anew."""
    kinds = {Mixture: MixedBatches, SampledTokens: SampledBatches}
    return kinds.get(type(tokens), Batches)(tokens, *how)


def held_out_loss(model, tokens, *how):
    """`perplexity.held_out_loss`; of a mixture, each source's weighed by its share."""
    sides = zip(*tokens, strict=True) if isinstance(tokens, Mixture) else [(Source("", 1.0, []), tokens)]
    return sum(source.share * perplexity.held_out_loss(model, each, *how) for source, each in sides)


def tell_epochs(tokens, config):
    """Say on stderr what a run of these settings (`pretrain.PretrainConfig`) reads of each source of a mixture."""
    draws = config.steps * config.batch_size * config.grad_accumulation
    for source, each in zip(*tokens, strict=True) if isinstance(tokens, Mixture) and is_main_process() else ():
        epochs = source.share * draws / ((len(each) - 1) // config.seq_len)
        print(f"{source.name}: {100 * source.share:g} % of {draws:,} rows, {epochs:.2f} epochs of {len(each):,} tokens",
              file=sys.stderr)
