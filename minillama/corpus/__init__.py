"""Text to train on: seeded stories and a forum whose entropy is known exactly, and readers of real text.

`mixture` is the pretraining corpus. Its grammar is the two grammars under one more choice, so its bits per document
are as exact as theirs: H = H(source) + share of stories x H(story) + share of forum x H(question with answer).
"""

import random

from minillama.corpus import forum, stories
from minillama.corpus.grammar import Document, Grammar

FLOOR = 2  # imports from its own floor or a lower one
__all__ = ["Document", "mixture", "mixture_entropy_bits", "count_shared"]

GRAMMAR = Grammar({"document": ["{story}", "{question} {answer}"]} | stories.RULES | forum.RULES, start="{document}")
mixture_entropy_bits = GRAMMAR.entropy_bits  # of its documents
SPLITS = ("train", "held-out")


def mixture(seed, n, split="train"):
    """`n` documents, half stories and half questions with answers; `bits` include the choice between the two.

    The splits draw from streams of random numbers of their own (the name of the split is part of the seed), so
    held-out documents depend on no draw behind the training ones. Two texts may still agree by chance;
    `count_shared` says how many did.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {SPLITS}")
    return GRAMMAR.documents(random.Random(f"mixture {split} {seed}"), n)


def count_shared(train, held_out):
    """How many held-out documents stand, letter for letter, in the training documents as well."""
    seen = {document.text for document in train}
    return sum(document.text in seen for document in held_out)
