"""Strings that make tokenizers differ: seeded mixtures of scripts, spaces, digits, marks and special tokens' names."""

import random
import unicodedata

FRAGMENTS = ["a", "The", "don't", "I'LL", "'\u017f", "'S", "1", "12", "123", "2023", "\u00b2", "\u00bd", "\u0663",
             " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n", "\u00a0", "\u3000", "\u2028", "\u0085", "\u180e",
             "\u200b", "\u200d", "\x00", "\x1c", ".", "...", "!?", "=>", "//", "#", "_", "e\u0301", "\u0301",
             "\u00fc", "\u00df", "\u0130", "\u4f60\u597d", "\u65e5\u672c\u8a9e", "\u041f\u0440\u0438",
             "\u0645\u0631\u062d\u0628\u0627", "\ud55c\uad6d", "\U0001f999", "\U0001f468\u200d\U0001f469",
             "\U0001d54f", "\u2581", "<s>", "</s>", "<0x41>", "<|begin_of_text|>", "<|eot_id|>", "<unk>", "Vi\u1ec7t",
             " Vi\u1ec7t", "hello world", "    return x", "http://x.y/z?q=1&r=%20", "\ufeff", "\ufffd"]


def fuzzed(count, seed=0, assigned=True):
    """`count` strings of 1 to 12 fragments or random characters. assigned: none that Unicode has not named, as Python
    knows it: they become letters in some later version, and programs differ in which they know."""
    source = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(source.randint(1, 12)):
            if source.random() < 0.75:
                parts.append(source.choice(FRAGMENTS))
            else:
                character = chr(source.choice([source.randrange(0x80), source.randrange(0xD800),
                                               source.randrange(0xE000, 0x110000)]))
                parts.append("?" if assigned and unicodedata.category(character) == "Cn" else character)
        yield "".join(parts)
