"""`train_bpe`: from text to a tokenizer in LLaMA's form, piece for piece what SentencePiece 0.2.3 trains."""

import time
import warnings

from tqdm import tqdm

from .bpe import PieceTrainer
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


def _learn(trainer, wanted, fixed, hard_limit, progress):
    """Up to `wanted` merged pieces; fewer exist only if the text is too small, which is an error."""
    texts = []
    while len(texts) < wanted:
        text = trainer.next_piece()
        if text is None and not hard_limit:
            break
        if text is None:
            raise ValueError(f"vocab_size {fixed + wanted} is too high for this text: {fixed} to {fixed + len(texts)} "
                             "are possible; lower it or give more text")
        texts.append(text)
        progress.update(1)
    return texts


def train_bpe(texts_or_files, vocab_size, *, character_coverage=0.99995, split_digits=True, byte_fallback=True,
              max_piece_length=16, max_line_bytes=4192, user_defined_symbols=(), control_symbols=(),
              hard_vocab_limit=True, progress=False):
    """Train a SentencePiece BPE tokenizer with LLaMA's options (arXiv:2302.13971, section 2.1).

    texts_or_files: pathlib.Path, or an iterable of str, bytes and Path; streamed, cut into lines at newlines.
    vocab_size: number of pieces: <unk> <s> </s>, given symbols, 256 bytes, merged pieces, then the alphabet.
    character_coverage: share of the text's characters that become pieces; the rest is encoded as bytes.
    split_digits: digits stay single. byte_fallback: include the 256 byte pieces; without them a character outside
    the alphabet is <unk> and its text is lost. max_line_bytes: longer lines are skipped and counted.
    hard_vocab_limit=False: a text too small for vocab_size gives fewer pieces instead of an error.

    Returns a SentencePieceTokenizer; its `training_report` says what was read and skipped. ValueError if the
    vocabulary size is impossible, with the possible range. The result depends on the text and the options only.

    >>> tokenizer = train_bpe(["low low low lower lowest"], 270)
    >>> [tokenizer.id_to_piece(i) for i in range(259, 262)]
    ['lo', 'low', '▁low']
    """
    started, report = time.perf_counter(), TrainingReport()
    _check_options(vocab_size, character_coverage, max_piece_length, max_line_bytes)
    meta = _meta_pieces(byte_fallback, user_defined_symbols, control_symbols)
    with tqdm(desc="reading", unit="B", unit_scale=True, disable=not progress) as reading:
        counts = count_words(texts_or_files, [piece.text for piece in meta], max_line_bytes, report, reading.update)
    if not counts:
        raise ValueError("the corpus has no line to learn from: " + ("; ".join(report.notes) or "it is empty"))
    alphabet, report.uncovered = choose_alphabet(counts, character_coverage)
    report.alphabet, fixed = len(alphabet), len(meta) + len(alphabet)
    if vocab_size < fixed:
        raise ValueError(f"vocab_size {vocab_size} is too low for this text: at least {fixed} are needed ({len(meta)} "
                         f"special and byte pieces, {len(alphabet)} characters); raise it or lower character_coverage")
    trainer = PieceTrainer(counts, alphabet, max_piece_length, split_digits)
    with tqdm(desc="merging", total=vocab_size - fixed, unit="piece", disable=not progress) as merging:
        texts = _learn(trainer, vocab_size - fixed, fixed, hard_vocab_limit, merging)
    report.merges, report.last_count = len(texts), trainer.last_count
    report.seconds = time.perf_counter() - started
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    pieces = meta + [Piece(text, -float(rank)) for rank, text in enumerate([*texts, *alphabet])]
    return SentencePieceTokenizer(model_bytes(pieces, character_coverage, split_digits, byte_fallback), report)
