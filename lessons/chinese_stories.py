"""Endless tiny stories in Chinese, like `stories`: a second language for a model that has learned English."""

import json
import random
from pathlib import Path

from minillama.corpus.grammar import Grammar

RULES = json.loads(Path(__file__).with_name("chinese_stories.json").read_text(encoding="utf-8"))
RULES["number"] = [str(number) for number in range(11, 100)]
GRAMMAR = Grammar(RULES, start="{story}")
entropy_bits = GRAMMAR.entropy_bits  # of a story on average


def documents(seed, n):
    """`n` stories as `Document(text, bits)`; the same seed gives the same stories on every machine."""
    return GRAMMAR.documents(random.Random(f"chinese stories {seed}"), n)
