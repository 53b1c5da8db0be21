"""`train_sentencepiece`: one call for all types of SentencePiece model, with the options of `train_bpe`."""

import time
import warnings
from collections import Counter

from minillama.system.terminal import tqdm

from .bpe_training import _check_options, _meta_pieces, train_bpe
from .characters_and_words import count_single_words, most_frequent
from .sentencepiece import MODEL_TYPES, Piece, SentencePieceTokenizer, model_bytes
from .unigram_training import learn_unigram
from .word_counts import SPACE, TrainingReport, choose_alphabet, count_words

ROOM = 1.1  # a unigram model is pruned to this multiple of the vocabulary


def train_sentencepiece(texts_or_files, vocab_size, model_type="bpe", *, character_coverage=0.99995, split_digits=True,
                        byte_fallback=None, max_piece_length=16, max_line_bytes=4192, user_defined_symbols=(),
                        hard_vocab_limit=True, whole_words=False, progress=False):
    """Train a SentencePiece tokenizer of a type: "bpe", "unigram", "char" or "word".

    The options are those of `train_bpe`; byte_fallback None: as is usual for the type (not for "char" and "word",
    where other text is <unk>). whole_words: a unigram model begins with all words as seeds too, as SentencePiece's
    does not (`seed_pieces`): far fewer tokens where words rarely end a line. Returns a SentencePieceTokenizer with its
    `training_report`; its scores are logarithms of probabilities, but for "bpe". ValueError for a type that is not
    known, and for an impossible vocabulary size.

    >>> tokenizer = train_sentencepiece(["low low low lower lowest"], 20, "unigram", byte_fallback=False,
    ...                                 hard_vocab_limit=False)
    >>> [tokenizer.id_to_piece(i) for i in tokenizer.encode("low low")]
    ['▁low', '▁low']
    """
    types = {name: number for number, name in MODEL_TYPES.items()}
    if model_type not in types:
        raise ValueError(f"model_type {model_type!r} is not known: choose one of {', '.join(sorted(types))}")
    byte_fallback = model_type in ("bpe", "unigram") if byte_fallback is None else byte_fallback
    if model_type == "bpe":
        return train_bpe(texts_or_files, vocab_size, character_coverage=character_coverage, split_digits=split_digits,
                         byte_fallback=byte_fallback, max_piece_length=max_piece_length, progress=progress,
                         max_line_bytes=max_line_bytes, user_defined_symbols=user_defined_symbols,
                         hard_vocab_limit=hard_vocab_limit)
    started, report = time.perf_counter(), TrainingReport()
    _check_options(vocab_size, character_coverage, max_piece_length, max_line_bytes)
    meta = _meta_pieces(byte_fallback, user_defined_symbols, ())
    counts, words = _count(texts_or_files, [piece.text for piece in meta], max_line_bytes, report, progress)
    alphabet, report.uncovered = choose_alphabet(words, character_coverage)
    report.alphabet, size = len(alphabet), vocab_size - len(meta)
    least = len(meta) + (len(alphabet) if model_type == "unigram" else 1)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is too low for this text: at least {least} are needed ({len(meta)} "
                         f"special and byte pieces, {least - len(meta)} others); raise it or lower character_coverage")
    found = _learn(model_type, counts, words, alphabet, size, vocab_size, progress,
                   (max_piece_length, split_digits, whole_words))
    if len(found) < size and hard_vocab_limit:
        raise ValueError(f"vocab_size {vocab_size} is too high for this text: at most {len(meta) + len(found)} are "
                         "possible; lower it or give more text")
    report.seconds = time.perf_counter() - started
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    pieces = meta + [Piece(text, score) for text, score in found]
    return SentencePieceTokenizer(model_bytes(pieces, character_coverage, split_digits, byte_fallback,
                                              model_type=types[model_type]), report)


def _count(texts_or_files, meta, max_line_bytes, report, progress):
    """({word: count} with a newline behind the last word of each line, and the same without)."""
    with tqdm(desc="reading", unit="B", unit_scale=True, disable=not progress) as reading:
        counts = count_words(texts_or_files, meta, max_line_bytes, report, reading.update, line_end="\n")
    report.finish_reading(max_line_bytes)
    words = Counter()
    for word, count in counts.items():
        words[word.removesuffix("\n")] += count
    return counts, words


def _learn(model_type, counts, words, alphabet, size, vocab_size, progress, seed_options):
    """[(piece, log probability), ...] of a type; counts: of words with their line ends, words: without."""
    if model_type == "char":
        return most_frequent(alphabet, size)
    if model_type == "word":
        return most_frequent(count_single_words(words), size)
    counts = {word if word.endswith("\n") else word + SPACE: count for word, count in counts.items()}
    with tqdm(desc="EM", unit="round", disable=not progress) as rounds:
        return learn_unigram(counts, alphabet, size, int(ROOM * vocab_size), *seed_options,
                             progress=lambda pieces: (rounds.update(), rounds.set_postfix(pieces=pieces)))
