"""`train_sentencepiece`: one call for all types of SentencePiece model; BPE, piece for piece, as 0.2.3 trains it.

A trainer reads the texts, chooses the alphabet and learns pieces, in this order: `PythonTrainer` or its twin
`compiled.CompiledTrainer` learns BPE merges, `CountTrainer` the other types.
"""

import time
import warnings
from collections import Counter

from minillama.system.terminal import tqdm

from . import unigram_steps, unigram_training
from .bpe_encoder import BYTE, CONTROL, UNKNOWN, USER_DEFINED
from .characters_and_words import count_single_words, most_frequent
from .compiled import CompiledTrainer, choose_backend
from .piece_trainer import PieceTrainer
from .sentencepiece import BYTE_PIECES, MODEL_TYPES, Piece, SentencePieceTokenizer, model_bytes
from .word_counts import SPACE, TrainingReport, choose_alphabet, count_words

ROOM = 1.1  # a unigram model is pruned to this multiple of the vocabulary
STEP = 500  # merges between two moves of the progress bar


def train_bpe(texts_or_files, vocab_size, **options):
    """Train a SentencePiece BPE tokenizer with LLaMA's options (arXiv:2302.13971, section 2.1), which are the defaults
    of `train_sentencepiece`.

    >>> tokenizer = train_bpe(["low low low lower lowest"], 270)
    >>> [tokenizer.id_to_piece(i) for i in range(259, 262)]
    ['lo', 'low', '▁low']
    """
    return train_sentencepiece(texts_or_files, vocab_size, "bpe", **options)


def train_sentencepiece(texts_or_files, vocab_size, model_type="bpe", *, character_coverage=0.99995, split_digits=True,
                        byte_fallback=None, max_piece_length=16, max_line_bytes=4192, user_defined_symbols=(),
                        control_symbols=(), hard_vocab_limit=True, whole_words=False, split_unspaced=False,
                        progress=False, backend=None, threads=None):
    """Train a SentencePiece tokenizer of a type: "bpe", "unigram", "char" or "word".

    texts_or_files: pathlib.Path, or an iterable of str, bytes and Path; streamed, cut into lines at newlines.
    vocab_size: number of pieces: <unk> <s> </s>, given symbols, 256 bytes, learnt pieces and the alphabet.
    character_coverage: share of the text's characters that become pieces; the rest is encoded as bytes.
    split_digits: digits stay single. byte_fallback: include the 256 byte pieces; without them a character outside
    the alphabet is <unk> and its text is lost; None: only for "bpe" and "unigram".
    max_line_bytes: longer lines are skipped and counted. hard_vocab_limit=False: a text too small for vocab_size gives
    fewer pieces instead of an error. whole_words: a unigram model begins with all words as seeds too (`seed_pieces`).
    split_unspaced: of "bpe", letters of scripts without spaces stay single, as the 837 Chinese and Japanese of LLaMA.
    backend: of bpe, unigram and the tokenizer, "python" or "cpp" (None: `default_backend()`). threads: of bpe's "cpp".

    Returns a SentencePieceTokenizer; its `training_report` says what was read and skipped; its scores are logarithms
    of probabilities, but for "bpe". ValueError for a type that is not known, and for a vocabulary size that is
    impossible, with the possible range. The result depends on the text and the options only.
    """
    _check_options(model_type, vocab_size, character_coverage, max_piece_length, max_line_bytes)
    byte_fallback = model_type in ("bpe", "unigram") if byte_fallback is None else byte_fallback
    meta = _given_pieces(byte_fallback, user_defined_symbols, control_symbols)
    needed = {"bpe": "BpeTrainer", "unigram": "unigram_prune"}.get(model_type)
    started = time.perf_counter()
    report = TrainingReport(backend=choose_backend(backend, needed) if needed else "python")
    options = [piece.text for piece in meta], max_line_bytes, max_piece_length, split_digits
    if model_type != "bpe":
        if split_unspaced:
            raise ValueError(f"split_unspaced is of bpe alone, not of {model_type}: leave it out")
        trainer = CountTrainer(*options, whole_words, model_type=model_type, backend=report.backend)
    else:
        options = *options, split_unspaced
        trainer = CompiledTrainer(*options, threads) if report.backend == "cpp" else PythonTrainer(*options)
    _read(trainer, texts_or_files, max_line_bytes, report, progress)
    alphabet, report.uncovered = trainer.choose_alphabet(character_coverage)
    rows = _learn(trainer, model_type, list(alphabet), vocab_size, len(meta), hard_vocab_limit, report, progress)
    report.seconds = time.perf_counter() - started
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    del trainer  # its memory is large, and the tokenizer needs some
    model = model_bytes([*meta, *rows], character_coverage, split_digits, byte_fallback, model_type=model_type)
    return SentencePieceTokenizer(model, report, backend)


def _check_options(model_type, vocab_size, coverage, max_piece_length, max_line_bytes):
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type {model_type!r} is not known: choose one of {', '.join(sorted(MODEL_TYPES))}")
    for name, value, least, most in (("character_coverage", coverage, 0.98, 1.0),
                                     ("max_piece_length", max_piece_length, 1, 512),
                                     ("max_line_bytes", max_line_bytes, 10, 1 << 30),
                                     ("vocab_size", vocab_size, 1, 1 << 30)):
        if not least <= value <= most:
            raise ValueError(f"{name} {value} is not allowed: choose {least} to {most}")


def _given_pieces(byte_fallback, user_defined, control):
    """The pieces that are not learnt: <unk> <s> </s>, control and user-defined ones, then the 256 bytes."""
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(text, 0.0, CONTROL) for text in control]
    pieces += [Piece(text, 0.0, USER_DEFINED) for text in user_defined]
    pieces += [Piece(text, 0.0, BYTE) for text in BYTE_PIECES] if byte_fallback else []
    counts = Counter(piece.text for piece in pieces)
    for text, count in counts.items():
        if not text or count > 1:
            raise ValueError(f"special piece {text!r} is empty or given twice (<unk>, <s>, </s> are always there)")
    return pieces


def _read(trainer, texts_or_files, max_line_bytes, report, progress):
    with tqdm(desc="reading", unit="B", unit_scale=True, disable=not progress) as reading:
        trainer.read(texts_or_files, report, reading.update)
    report.finish_reading(max_line_bytes)


def _learn(trainer, model_type, alphabet, vocab_size, n_given, hard_limit, report, progress):
    """The `Piece`s that are learnt; ValueError where the vocabulary has no room for those that there must be, and, if
    the limit is hard, where there are too few."""
    report.alphabet = len(alphabet)
    least = n_given + (1 if model_type in ("char", "word") else len(alphabet))
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is too low for this text: at least {least} are needed ({n_given} "
                         f"special and byte pieces, {least - n_given} others); raise it or lower character_coverage")
    if model_type == "bpe":
        texts = _learn_merges(trainer, vocab_size - least, progress)
        rows = [(text, -float(rank)) for rank, text in enumerate([*texts, *alphabet])]
    else:
        rows = trainer.learn(vocab_size - n_given, int(ROOM * vocab_size), progress)
    if n_given + len(rows) < vocab_size and hard_limit:
        raise ValueError(f"vocab_size {vocab_size} is too high for this text: {least} to {n_given + len(rows)} are "
                         "possible; lower it or give more text")
    return [Piece(*row) for row in rows]


def _learn_merges(trainer, wanted, progress):
    texts = []
    with tqdm(desc="merging", total=wanted, unit="piece", disable=not progress) as merging:
        while True:
            found = trainer.learn(min(wanted - len(texts), STEP))
            texts += found
            merging.update(len(found))
            if len(found) < STEP:
                return texts


class PythonTrainer:
    """BPE in plain Python: reading, alphabet and merges, called in this order."""

    def __init__(self, meta_pieces, max_line_bytes, *rules):
        self._meta, self._max_line_bytes, self._rules, self._trainer = meta_pieces, max_line_bytes, rules, None

    def read(self, texts_or_files, report, progress=None):
        """Count the words of the whole corpus; fills the report."""
        self._counts = count_words(texts_or_files, self._meta, self._max_line_bytes, report, progress)

    def choose_alphabet(self, coverage):
        """(the characters that become pieces, how many occurrences of others there are)."""
        self._alphabet, uncovered = choose_alphabet(self._counts, coverage)
        return self._alphabet, uncovered

    def learn(self, most):
        """Up to `most` further pieces."""
        trainer = self._trainer = self._trainer or PieceTrainer(self._counts, self._alphabet, *self._rules)
        return [text for _ in range(most) if (text := trainer.next_piece()) is not None]


class CountTrainer(PythonTrainer):
    """The types without merges. seed_options: as for `seed_pieces`."""

    def __init__(self, meta_pieces, max_line_bytes, *seed_options, model_type, backend):
        super().__init__(meta_pieces, max_line_bytes)
        self._model_type, self._seed_options, self._backend = model_type, seed_options, backend

    def read(self, texts_or_files, report, progress=None):
        """Count the words, and also those at the ends of lines."""
        self._ended = count_words(texts_or_files, self._meta, self._max_line_bytes, report, progress, line_end="\n")
        self._counts = Counter()
        for word, count in self._ended.items():
            self._counts[word.removesuffix("\n")] += count

    def learn(self, size, enough, progress):
        """[(piece, log probability), ...]; enough: where a unigram model stops pruning."""
        if self._model_type == "char":
            return most_frequent(self._alphabet, size)
        if self._model_type == "word":
            return most_frequent(count_single_words(self._counts), size)
        counts = {word if word.endswith("\n") else word + SPACE: count for word, count in self._ended.items()}
        with tqdm(desc="EM", unit="round", disable=not progress) as rounds:
            return unigram_training.learn_unigram(
                counts, self._alphabet, size, enough, *self._seed_options,
                steps=unigram_steps if self._backend == "cpp" else unigram_training,
                progress=lambda pieces: (rounds.update(), rounds.set_postfix(pieces=pieces)))
