"""Training of byte-level BPE, as Hugging Face's tokenizers do it: `piece_trainer` without its rules for pieces.

A pattern cuts the texts into words, each byte of a word is a symbol, and the pair that occurs most often is joined; of
equals the one whose left symbol has the lower id, then the right one. The 256 bytes come first, in the order of their
printable characters (`byte_bpe.spell_bytes`).
"""

from collections import Counter

from minillama.system.terminal import tqdm

from . import byte_bpe_steps
from .byte_bpe import GPT2_WORDS, LLAMA3_WORDS, ByteBpeTokenizer, read_spelling, spell_bytes
from .compiled import choose_backend
from .piece_trainer import PieceTrainer
from .tiktoken import BEGIN, END
from .tokenizer_json import tokenizer_json

PATTERNS = {"llama3": LLAMA3_WORDS, "gpt4": LLAMA3_WORDS, "gpt2": GPT2_WORDS}  # Llama 3 took GPT-4's pattern over


class BytePairs(PieceTrainer):
    """A PieceTrainer for words of GPT-2's characters for bytes: any pair may be joined, ties go by ids."""

    def __init__(self, word_counts):
        self.ids = {spell_bytes(token): index for index, token in enumerate(byte_bpe_steps.FIRST_TOKENS)}
        super().__init__(word_counts, self.ids)

    def admissible(self, left, right, length_matters=True):
        """Always."""
        return True

    def order(self, pair):
        return self.ids[pair[0]], self.ids[pair[1]]


def learn_pairs(texts, patterns, most, progress=False):
    """The first `most` pairs of tokens (bytes) to join, in order; fewer where no pair is left."""
    splitter, counts, pairs = ByteBpeTokenizer({}, {}, patterns, backend="python"), Counter(), []
    for text in texts:
        counts.update(splitter.split(text))
    trainer = BytePairs({spell_bytes(word.encode()): count for word, count in counts.items()})
    for _ in tqdm(range(most), desc="merging", unit="token", disable=not progress):
        pair = trainer.best_pair()
        if pair is None or trainer.counts[pair] < 1:
            break
        trainer.ids["".join(pair)] = len(trainer.ids)
        trainer.next_piece()
        pairs.append(tuple(map(read_spelling, pair)))
    return pairs


def train_byte_bpe(texts_or_files, vocab_size, pattern="llama3", specials=(BEGIN, END), progress=False, backend=None):
    """Train a byte-level BPE tokenizer; returns a ByteBpeTokenizer, whose `save` writes a tokenizer.json.

    texts_or_files: as for `train_bpe`, each text as a whole (newlines are part of words). vocab_size: the 256 bytes,
    the merges, then the special tokens. pattern: one of `PATTERNS`. backend: "python" or "cpp" (csrc/cpu), None for
    `default_backend`; both give the same tokenizer. ValueError for a size that is impossible.

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
    learn = byte_bpe_steps.learn_pairs if choose_backend(backend, "ByteBpeTrainer") == "cpp" else learn_pairs
    pairs = learn(byte_bpe_steps.whole_texts(texts_or_files), [PATTERNS[pattern]], wanted, progress)
    if len(pairs) < wanted:
        raise ValueError(f"vocab_size {vocab_size} is too high for this text: at most "
                         f"{256 + len(pairs) + len(specials)} are possible; lower it or give more text")
    ids = {token: index for index, token in enumerate([*byte_bpe_steps.FIRST_TOKENS, *map(b"".join, pairs)])}
    names = {name: len(ids) + place for place, name in enumerate(specials)}
    known = [name for name in (BEGIN, END) if name in names] or [None]
    return ByteBpeTokenizer(ids, names, [PATTERNS[pattern]], {pair: rank for rank, pair in enumerate(pairs)},
                            whole_words=False, bos=known[0], eos=known[-1], file=tokenizer_json, backend=backend)
