"""Endless tiny stories from a seed, each with its exact number of bits.

Seven plots, a child who wants something, an animal who helps. Most words are free choices, which a small model can
learn in a minute; a few return later (the name, the toy, the animal), which it can only learn by looking back. The
sentences and words are stories.json, rules as `grammar.Grammar` takes them.
"""

import json
import random
from pathlib import Path

from minillama.corpus.grammar import Grammar

RULES = json.loads(Path(__file__).with_name("stories.json").read_text(encoding="utf-8"))
RULES["number"] = [str(number) for number in range(11, 100)]
GRAMMAR = Grammar(RULES, start="{story}")


def documents(seed, n):
    """`n` stories as `Document(text, bits)`; the same seed gives the same stories on every machine."""
    return GRAMMAR.documents(random.Random(f"stories {seed}"), n)
