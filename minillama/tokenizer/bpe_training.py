"""`train_bpe`: from text to a tokenizer in LLaMA's form, piece for piece what SentencePiece 0.2.3 trains."""

import itertools
import time
import warnings

from minillama.system.terminal import tqdm

from .compiled import CompiledTrainer, choose_backend
from .piece_trainer import PieceTrainer
from .sentencepiece import BYTE, BYTE_PIECES, CONTROL, UNKNOWN, USER_DEFINED, Piece, SentencePieceTokenizer, model_bytes
from .word_counts import TrainingReport, choose_alphabet, count_words


def _meta_pieces(byte_fallback, user_defined, control):
    """The pieces that are given, not learnt: <unk> <s> </s>, control and user-defined ones, then the 256 bytes."""
    texts = [(text, CONTROL) for text in control] + [(text, USER_DEFINED) for text in user_defined]
    texts += [(text, BYTE) for text in BYTE_PIECES] if byte_fallback else []
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    for text, kind in texts:
        if not text or any(text == piece.text for piece in pieces):
            raise ValueError(f"special piece {text!r} is empty or given twice (<unk>, <s>, </s> are always there)")
        pieces.append(Piece(text, 0.0, kind))
    return pieces


def _check_options(vocab_size, coverage, max_piece_length, max_line_bytes):
    for name, value, least, most in (("character_coverage", coverage, 0.98, 1.0),
                                     ("max_piece_length", max_piece_length, 1, 512),
                                     ("max_line_bytes", max_line_bytes, 10, 1 << 30),
                                     ("vocab_size", vocab_size, 1, 1 << 30)):
        if not least <= value <= most:
            raise ValueError(f"{name} {value} is not allowed: choose {least} to {most}")


class PythonTrainer:
    """Reading, alphabet and merges in plain Python, called in this order. `CompiledTrainer` is its twin."""

    def __init__(self, meta_pieces, max_line_bytes, max_piece_length, split_digits, threads=None):
        self._meta, self._max_line_bytes = meta_pieces, max_line_bytes
        self._rules, self._trainer = (max_piece_length, split_digits), None

    def read(self, texts_or_files, report, progress=None):
        """Count the words of the whole corpus; fills the report."""
        self._counts = count_words(texts_or_files, self._meta, self._max_line_bytes, report, progress)

    def choose_alphabet(self, coverage):
        """(the characters that become pieces, how many occurrences of others there are)."""
        self._alphabet, uncovered = choose_alphabet(self._counts, coverage)
        return list(self._alphabet), uncovered

    def learn(self, most):
        """Up to `most` further pieces."""
        self._trainer = self._trainer or PieceTrainer(self._counts, self._alphabet, *self._rules)
        texts = (self._trainer.next_piece() for _ in range(most))
        return list(itertools.takewhile(lambda text: text is not None, texts))

    @property
    def last_count(self):
        """How often the pair joined last occurred."""
        return self._trainer.last_count

    @property
    def segments(self):
        """Different runs of two or more characters that could share a piece."""
        return self._trainer.segments


def _learn(trainer, wanted, fixed, hard_limit, progress):
    """The `wanted` merged pieces; fewer exist only if the text is too small, which is an error if the limit is hard."""
    texts, step = [], 500
    while True:
        found = trainer.learn(min(wanted - len(texts), step))
        texts += found
        progress.update(len(found))
        if len(found) < step:
            break
    if len(texts) < wanted and hard_limit:
        raise ValueError(f"vocab_size {fixed + wanted} is too high for this text: {fixed} to {fixed + len(texts)} are "
                         "possible; lower it or give more text")
    return texts


def train_bpe(texts_or_files, vocab_size, *, character_coverage=0.99995, split_digits=True, byte_fallback=True,
              max_piece_length=16, max_line_bytes=4192, user_defined_symbols=(), control_symbols=(),
              hard_vocab_limit=True, progress=False, backend=None, threads=None):
    """Train a SentencePiece BPE tokenizer with LLaMA's options (arXiv:2302.13971, section 2.1).

    texts_or_files: pathlib.Path, or an iterable of str, bytes and Path; streamed, cut into lines at newlines.
    vocab_size: number of pieces: <unk> <s> </s>, given symbols, 256 bytes, merged pieces, then the alphabet.
    character_coverage: share of the text's characters that become pieces; the rest is encoded as bytes.
    split_digits: digits stay single. byte_fallback: include the 256 byte pieces; without them a character outside
    the alphabet is <unk> and its text is lost. max_line_bytes: longer lines are skipped and counted.
    hard_vocab_limit=False: a text too small for vocab_size gives fewer pieces instead of an error.
    backend: "python" or "cpp" (None: `default_backend()`); the tokenizer uses it too. threads: how many count in "cpp".

    Returns a SentencePieceTokenizer; its `training_report` says what was read and skipped. ValueError if the
    vocabulary size is impossible, with the possible range. The result depends on the text and the options only.

    >>> tokenizer = train_bpe(["low low low lower lowest"], 270)
    >>> [tokenizer.id_to_piece(i) for i in range(259, 262)]
    ['lo', 'low', '▁low']
    """
    started, report = time.perf_counter(), TrainingReport(backend=choose_backend(backend))
    _check_options(vocab_size, character_coverage, max_piece_length, max_line_bytes)
    meta = _meta_pieces(byte_fallback, user_defined_symbols, control_symbols)
    twin = CompiledTrainer if report.backend == "cpp" else PythonTrainer
    trainer = twin([piece.text for piece in meta], max_line_bytes, max_piece_length, split_digits, threads)
    with tqdm(desc="reading", unit="B", unit_scale=True, disable=not progress) as reading:
        trainer.read(texts_or_files, report, reading.update)
    report.finish_reading(max_line_bytes)
    alphabet, report.uncovered = trainer.choose_alphabet(character_coverage)
    report.alphabet, fixed = len(alphabet), len(meta) + len(alphabet)
    if vocab_size < fixed:
        raise ValueError(f"vocab_size {vocab_size} is too low for this text: at least {fixed} are needed ({len(meta)} "
                         f"special and byte pieces, {len(alphabet)} characters); raise it or lower character_coverage")
    with tqdm(desc="merging", total=vocab_size - fixed, unit="piece", disable=not progress) as merging:
        texts = _learn(trainer, vocab_size - fixed, fixed, hard_vocab_limit, merging)
    report.merges, report.last_count, report.segments = len(texts), trainer.last_count, trainer.segments
    report.seconds = time.perf_counter() - started
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    del trainer  # its memory is large, and the tokenizer needs some
    pieces = meta + [Piece(text, -float(rank)) for rank, text in enumerate([*texts, *alphabet])]
    model = model_bytes(pieces, character_coverage, split_digits, byte_fallback)
    return SentencePieceTokenizer(model, report, backend)
