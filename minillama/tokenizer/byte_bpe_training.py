"""Training of byte-level BPE, as Hugging Face's tokenizers do it: `piece_trainer` without its rules for pieces.

A pattern cuts the texts into words, each byte of a word is a symbol, and the pair that occurs most often is joined; of
equals the one whose left symbol has the lower id, then the right one. The 256 bytes come first, in the order of their
printable characters (`byte_bpe.spell_bytes`).
"""

import os
from collections import Counter
from pathlib import Path

from minillama.system.terminal import tqdm

from .byte_bpe import BYTE_TO_CHARACTER, GPT2_WORDS, LLAMA3_WORDS, ByteBpeTokenizer, read_spelling, spell_bytes
from .piece_trainer import PieceTrainer
from .tiktoken import BEGIN, END
from .tokenizer_json import tokenizer_json
from .word_counts import sources_of

PATTERNS = {"llama3": LLAMA3_WORDS, "gpt4": LLAMA3_WORDS, "gpt2": GPT2_WORDS}  # Llama 3 took GPT-4's pattern over


class BytePairs(PieceTrainer):
    """A PieceTrainer for words of GPT-2's characters for bytes: any pair may be joined, ties go by ids."""

    def __init__(self, word_counts):
        self.ids = {character: index for index, character in enumerate(sorted(BYTE_TO_CHARACTER.values()))}
        super().__init__(word_counts, self.ids)

    def admissible(self, left, right, length_matters=True):
        """Always."""
        return True

    def order(self, pair):
        """What decides among pairs of equal count, the least first."""
        return self.ids[pair[0]], self.ids[pair[1]]

    def next_merge(self):
        """Join the best pair everywhere and return it; None when no pair occurs any more."""
        pair = self.best_pair()
        if pair is None or self.counts[pair] < 1:
            return None
        self.ids.setdefault("".join(pair), len(self.ids))
        self.next_piece()
        return pair


def train_byte_bpe(texts_or_files, vocab_size, pattern="llama3", specials=(BEGIN, END), progress=False):
    """Train a byte-level BPE tokenizer; returns a ByteBpeTokenizer, whose `save` writes a tokenizer.json.

    texts_or_files: as for `train_bpe`, each text as a whole (newlines are part of words). vocab_size: the 256 bytes,
    the merges, then the special tokens. pattern: one of `PATTERNS`. ValueError for a size that is impossible.

    >>> tokenizer = train_byte_bpe(["low low low lower lowest"], 261)
    >>> [tokenizer.id_to_piece(i) for i in tokenizer.encode("low lower")]
    ['low', ' low', 'e', 'r']
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r} is not known: choose one of {', '.join(PATTERNS)}")
    wanted = vocab_size - 256 - len(specials)
    if wanted < 0:
        raise ValueError(f"vocab_size {vocab_size} is too low: the 256 bytes and {len(specials)} special tokens are "
                         f"{256 + len(specials)}")
    splitter, counts = ByteBpeTokenizer({}, {}, [PATTERNS[pattern]]), Counter()
    for source in sources_of(texts_or_files):
        source = Path(source).read_bytes() if isinstance(source, os.PathLike) else source
        counts.update(splitter.split(source if isinstance(source, str) else source.decode("utf-8", "replace")))
    trainer, pairs = BytePairs({spell_bytes(word.encode()): count for word, count in counts.items()}), []
    for _ in tqdm(range(wanted), desc="merging", unit="token", disable=not progress):
        pair = trainer.next_merge()
        if pair is None:
            raise ValueError(f"vocab_size {vocab_size} is too high for this text: at most "
                             f"{256 + len(pairs) + len(specials)} are possible; lower it or give more text")
        pairs.append(pair)
    merges = {(read_spelling(left), read_spelling(right)): rank for rank, (left, right) in enumerate(pairs)}
    ids = {read_spelling(symbol): index for symbol, index in trainer.ids.items()}
    names = {name: len(ids) + place for place, name in enumerate(specials)}
    known = [name for name in (BEGIN, END) if name in names] or [None]
    return ByteBpeTokenizer(ids, names, [PATTERNS[pattern]], merges, whole_words=False, bos=known[0], eos=known[-1],
                            file=tokenizer_json)
