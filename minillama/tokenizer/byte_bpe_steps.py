"""Training of byte-level BPE, compiled (csrc/cpu/byte_bpe_training.cpp; library minillama._C), and what it begins with.

`learn_pairs` stands for the function of its name in `byte_bpe_training`: the same arguments, the same pairs.
"""

import os
from pathlib import Path

from minillama.system.terminal import tqdm

from .byte_bpe import CHARACTER_TO_BYTE, KNOWN_PATTERNS
from .character_classes import ranges
from .compiled import _core
from .word_counts import sources_of

FIRST_TOKENS = [bytes([CHARACTER_TO_BYTE[character]]) for character in sorted(CHARACTER_TO_BYTE)]  # by id
STEP = 500  # merges between two moves of the progress bar


def whole_texts(texts_or_files):
    """Each source of a corpus as one str; what is not UTF-8 becomes U+FFFD."""
    for source in sources_of(texts_or_files):
        source = Path(source).read_bytes() if isinstance(source, os.PathLike) else source
        yield source if isinstance(source, str) else source.decode("utf-8", "replace")


def learn_pairs(texts, patterns, most, progress=False):
    """The pairs of tokens to join, in order. patterns: of `byte_bpe.KNOWN_PATTERNS`."""
    trainer = _core().ByteBpeTrainer(b"".join(FIRST_TOKENS), ranges(), list(map(KNOWN_PATTERNS.index, patterns)))
    for text in texts:
        trainer.feed(text)
    tokens, pairs = list(FIRST_TOKENS), []
    with tqdm(desc="merging", total=most, unit="token", disable=not progress) as merging:
        while found := trainer.learn(min(most - len(pairs), STEP)):
            for left, right in found:
                pairs.append((tokens[left], tokens[right]))
                tokens.append(tokens[left] + tokens[right])
            merging.update(len(found))
    return pairs
