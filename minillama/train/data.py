"""Pretraining data: documents become one long memory-mapped row of token ids, and a step number becomes a batch.

Documents are joined as  bos ids eos bos ids eos ...  The bos is what generation starts from, so the model must know it
as a beginning; the eos is what lets it stop by itself. The bos after an eos is certain and costs a trained model
nothing. Windows cut the row anywhere and attend across documents, as the first two LLaMA generations do.
"""

import contextlib
import hashlib
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from minillama.config_checks import Range, check
from minillama.corpus.text_files import normalised, sides
from minillama.system.files import atomic_write
from minillama.system.snapshot import open_snapshot
from minillama.system.terminal import tqdm

MAGIC, VERSION = b"MLTOKENS", 1
# Little-endian: magic, version, bytes per id (2 or 4), vocabulary size, ids, documents, their characters.
HEADER = struct.Struct("<8sIIQQQQ")
FRACTION = Range(1e-6, below=1)  # of the documents, to be held out
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


@dataclass(frozen=True, eq=False)
class Tokens:
    """A row of token ids, (N,) of any integer dtype, in memory or mapped from a file by `open_tokens`."""

    ids: np.ndarray
    vocab_size: int
    documents: int = 0  # how many were joined
    characters: int = 0  # Unicode characters of their text, for bits per character; 0 where unknown

    def __post_init__(self):
        if not isinstance(self.ids, np.ndarray) or self.ids.ndim != 1 or self.ids.dtype.kind not in "iu":
            raise TypeError("ids must be a one-dimensional numpy array of integers, not a "
                            f"{type(self.ids).__name__} {getattr(self.ids, 'shape', '')} "
                            f"{getattr(self.ids, 'dtype', '')}")
        check("vocab_size", self.vocab_size, int, Range(1))

    def __len__(self):
        return len(self.ids)

    def fingerprint(self):
        """CRC-32 of all ids: tells a resumed run that this is the same data. Reads the whole row once."""
        return zlib.crc32(np.ascontiguousarray(self.ids).view(np.uint8))


def write_tokens(path, documents, tokenizer, progress=True):
    """Tokenise an iterable of documents (str) into a token file, one document in memory at a time -> `Tokens`.

    2 bytes per id where the vocabulary allows it (at most 65,536 pieces), else 4. The file appears whole or not at all.
    """
    with _token_writer(path, tokenizer) as writer:
        for text in _watched(documents, progress):
            writer.add(text)
    return open_tokens(path, tokenizer.vocab_size)


def write_train_and_held_out(folder, documents, tokenizer, held_out_fraction=0.05, progress=True):
    """Split documents into `folder`/train.bin and `folder`/held_out.bin in one pass -> two `Tokens`.

    A hash of its text decides a document's side. So equal documents never stand on both sides, and a
    document keeps its side when others are added, removed or reordered. The share held out is right on
    average only; of too few documents the end is held out (`corpus.text_files.sides`), which is told with the progress.
    """
    check("held_out_fraction", held_out_fraction, float, FRACTION)
    paths = [Path(folder) / "train.bin", Path(folder) / "held_out.bin"]
    with _token_writer(paths[0], tokenizer) as train, _token_writer(paths[1], tokenizer) as held_out:
        tell = partial(print, file=sys.stderr) if progress else lambda line: None
        chosen = partial(is_held_out, fraction=held_out_fraction)
        for text, out in sides(_watched(documents, progress), chosen, held_out_fraction, tell):
            (held_out if out else train).add(text)
    return open_train_and_held_out(folder, tokenizer)


def open_train_and_held_out(folder, tokenizer):
    """The two `Tokens` that `write_train_and_held_out` left in `folder`."""
    return tuple(open_tokens(Path(folder) / name, tokenizer.vocab_size) for name in ("train.bin", "held_out.bin"))


def is_held_out(text, fraction):
    """Whether the 64-bit BLAKE2 hash of the text falls into the lowest `fraction` of all hashes."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def question_held_out(question, fraction):
    """`is_held_out` of a question (with its input), whatever its case and spacing. All stages that learn from questions
    split by this (fine-tuning, pairs, practice), so that none has learned what another is examined on."""
    return is_held_out(normalised(question), fraction)


def open_tokens(path, vocab_size=None):
    """Map a token file read-only -> `Tokens`. Nothing is read but the header; its claims are held against the size.

    ValueError if the file is not one of ours, is damaged, or was made with another vocabulary size than `vocab_size`.
    """
    path = Path(path)
    with open_snapshot(path) as (file, _):
        return _tokens_in(file, path, vocab_size)


def _tokens_in(file, path, vocab_size):
    size, head = os.fstat(file.fileno()).st_size, file.read(HEADER.size)
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise ValueError(f"{path} is not a token file: write one with minillama.train.data.write_tokens")
    _, version, width, vocabulary, count, n_documents, characters = HEADER.unpack(head)
    if version != VERSION or width not in DTYPES or not 1 <= vocabulary <= 256**width:
        raise ValueError(f"{path}: version {version}, {width} bytes per id, vocabulary {vocabulary}; this "
                         f"code reads version {VERSION} with 2 or 4 bytes per id and a vocabulary that fits: "
                         "write the file again")
    if size != HEADER.size + count * width:
        raise ValueError(f"{path}: the header promises {count} ids, {HEADER.size + count * width} bytes, but "
                         f"the file has {size}: it is damaged, write it again")
    if vocab_size is not None and vocab_size != vocabulary:
        raise ValueError(f"{path} was made with a vocabulary of {vocabulary} pieces, not {vocab_size}: "
                         "tokenise the text again with this tokenizer")
    if count == 0:
        raise ValueError(f"{path} holds no tokens: write it again, from at least one document")
    ids = np.asarray(np.memmap(file, DTYPES[width], "r", HEADER.size, (count,)))
    return Tokens(ids, vocabulary, n_documents, characters)


class Batches:
    """`batches(step)` -> (tokens_BT, targets_BT), int64 on the CPU: a pure function of (seed, step), so
    a resumed run has no iterator to restore.

    The row is cut into W = (N - 1) // T windows of T + 1 ids that overlap by one, so that each target
    is predicted once in an epoch (the last (N - 1) % T of the row are not). Each epoch has its own
    permutation of the windows; a batch may end one epoch and begin the next. The order is sorted PCG64
    output, a stream that NumPy keeps the same in all versions (NEP 19), unlike its shuffles.
    """

    def __init__(self, tokens, batch_size, seq_len, seed):
        if len(tokens) < seq_len + 1:
            raise ValueError(f"{len(tokens)} tokens do not fill one window of seq_len + 1 = {seq_len + 1}: "
                             "use more text or a shorter seq_len")
        self.tokens, self.batch_size, self.seq_len = tokens, batch_size, seq_len
        self.n_windows = (len(tokens) - 1) // seq_len  # W
        self._within_window = np.arange(seq_len + 1)
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(self.n_windows, seed, epoch))

    def __call__(self, step):
        drawn = range(step * self.batch_size, (step + 1) * self.batch_size)  # of the endless epochs
        windows = [self._order(i // self.n_windows)[i % self.n_windows] for i in drawn]
        places = np.array(windows)[:, None] * self.seq_len + self._within_window  # (B, T + 1)
        return inputs_and_targets(self.tokens, places)


def permutation(n, seed, epoch):
    """A permutation of 0 ... n - 1, the same on every machine for the same (seed, epoch)."""
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(n), kind="stable")


def inputs_and_targets(tokens, places):
    """Ids at places (B, T + 1) -> tokens_BT and, one place later, targets_BT, both int64."""
    ids = tokens.ids[places].astype(np.int64)
    if ids.max() >= tokens.vocab_size or ids.min() < 0:
        raise ValueError(f"the data holds ids {ids.min()} to {ids.max()}, outside its vocabulary of "
                         f"{tokens.vocab_size}: it is damaged, tokenise the text again")
    ids = torch.from_numpy(ids)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@contextlib.contextmanager
def _token_writer(path, tokenizer):
    """A token file in the making, into which documents are added; after an error no file is left behind."""
    with atomic_write(path) as file:
        file.write(bytes(HEADER.size))  # the place of the header, known only at the end
        writer = _Writer(file, tokenizer)
        yield writer
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, writer.width, writer.vocab_size, writer.count,
                               writer.documents, writer.characters))


class _Writer:
    def __init__(self, file, tokenizer):
        self.file, self.tokenizer, self.vocab_size = file, tokenizer, tokenizer.vocab_size
        self.bos, self.eos = tokenizer.bos_id is not None, tokenizer.eos_id is not None
        if not (self.bos or self.eos):
            raise ValueError("the tokenizer has neither a bos nor an eos piece: documents would run together")
        self.width = 2 if self.vocab_size <= 2**16 else 4
        self.count = self.documents = self.characters = 0

    def add(self, text):
        if not isinstance(text, str):
            raise TypeError(f"a document is a str, not {type(text).__name__}")
        ids = np.asarray(self.tokenizer.encode(text, bos=self.bos, eos=self.eos), dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"the tokenizer gave ids {ids.min()} to {ids.max()}, outside its vocab_size "
                             f"{self.vocab_size}")
        self.file.write(ids.astype(DTYPES[self.width]).tobytes())
        self.count, self.documents = self.count + len(ids), self.documents + 1
        self.characters += len(text)


def _watched(documents, progress):
    if isinstance(documents, (str, bytes)):
        raise TypeError("documents is one string: give an iterable of strings, one per document: [text]")
    return tqdm(documents, desc="tokenise", unit=" documents", disable=not progress)
