"""The door to the tokenizer's compiled core (csrc/cpu/*bpe*.cpp, csrc/cpu/*word*.cpp; library minillama._C).

It learns the same pieces and gives the same ids as the plain Python beside it, faster. It is the default where it is
built; `default_backend()` says so, and asking for it where it is not built is an error.
"""

import functools
import importlib
import os

from .bpe_encoder import whitespace_normalizer
from .piece_trainer import HAN_LIKE, UNSPACED
from .unicode_script import RANGES
from .word_counts import SPACE, blocks_of, encode_utf8

BACKENDS = ("python", "cpp")
BUILD = "python setup.py build_ext --inplace"
DIGIT_CLASS, SPACE_CLASS = 254, 255  # as in csrc/cpu/bpe.h; 0 goes with every script
_BATCH = 1 << 22  # bytes handed over at a time


def default_backend(needed="BpeEncoder"):
    """The backend used where none is asked for: "cpp" where what is needed of it is built, else "python"."""
    return "cpp" if hasattr(_core(), needed) else "python"


def choose_backend(backend=None, needed="BpeEncoder"):
    """The backend to use. ValueError for an unknown name, RuntimeError that says how to build a missing one."""
    if backend is None:
        return default_backend(needed)
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known: choose 'python' or 'cpp', or None for the default")
    if backend == "cpp" and not hasattr(_core(), needed):
        raise RuntimeError(f"backend 'cpp' is not built here. In the checkout, with a C++ compiler: {BUILD}")
    return backend


@functools.cache
def _core():
    """The library, or None where it was never compiled or was compiled for another Python."""
    try:
        return importlib.import_module("minillama._C")
    except ImportError:
        return None


class CompiledEncoder:
    """The counterpart of `bpe_encoder.BpeEncoder`: the same arguments, the same ids. May be used by several threads."""

    def __init__(self, pieces, unk_id, rules):
        self._core = _core().BpeEncoder(*map(list, zip(*pieces, strict=True)), unk_id, rules.byte_fallback)
        self._dummy_prefix = rules.add_dummy_prefix
        special = (rules.remove_extra_whitespaces or rules.treat_whitespace_as_suffix or not rules.escape_whitespaces
                   or rules.character_map)
        self._normalize = whitespace_normalizer(pieces, rules) if special else None

    def encode(self, text):
        try:
            if self._normalize:
                return self._core.encode(self._normalize(text), False, False)
            return self._core.encode(text, self._dummy_prefix, True)
        except UnicodeEncodeError:
            encode_utf8(text)  # the same error in words
            raise


class CompiledTrainer:
    """The counterpart of `sentencepiece_training.PythonTrainer`."""

    def __init__(self, meta_pieces, max_line_bytes, max_piece_length, split_digits, split_unspaced=False, threads=None):
        numbers = {"Inherited": 0, "Common": 1, "Han": 2, "Hiragana": 2, "Katakana": 2}
        numbers |= dict.fromkeys([*UNSPACED, *HAN_LIKE] if split_unspaced else (), DIGIT_CLASS)
        classes = [(first, last, numbers.setdefault(name, len(numbers))) for first, last, name in RANGES]
        classes += [(0x30FC, 0x30FC, numbers["Han"]), (ord(SPACE), ord(SPACE), SPACE_CLASS)]
        if split_digits:
            classes += [(0x30, 0x39, DIGIT_CLASS), (0xFF10, 0xFF19, DIGIT_CLASS)]
        threads = threads or min(os.cpu_count() or 1, 8)
        self._core = _core().BpeTrainer(meta_pieces, classes, numbers["Common"], max_line_bytes, max_piece_length,
                                        threads)

    def read(self, texts_or_files, report, progress=None):
        parts, size = [], 0
        for block, is_last in blocks_of(texts_or_files):
            parts += [block, b"\n"] if is_last else [block]  # the end of a text is the end of its last line
            size += len(block) + 1
            if size >= _BATCH:
                self._feed(parts, False, progress)
                parts, size = [], 0
        self._feed(parts, True, progress)
        for name, count in self._core.report().items():
            setattr(report, name, count)

    def _feed(self, parts, is_last, progress):
        block = b"".join(parts)
        self._core.feed(block, is_last)
        if progress:
            progress(len(block))

    def choose_alphabet(self, coverage):
        codes, uncovered = self._core.choose_alphabet(coverage)
        return [chr(code) for code in codes], uncovered

    def learn(self, most):
        return self._core.learn(most)


def byte_encoder(tokenizer, classes, patterns):
    """The compiled core of a `ByteBpeTokenizer`. classes: (first, last, class) of characters; patterns: by number."""
    merges = [] if tokenizer.ids_are_ranks else tokenizer.merges()
    return _core().ByteBpeEncoder(list(tokenizer.ids), list(tokenizer.ids.values()), merges, tokenizer.ids_are_ranks,
                                  tokenizer.whole_words, classes, list(patterns))
