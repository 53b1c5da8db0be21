"""Self-instruct: a few tasks written by people grow into many (arXiv 2212.10560, section 2; the filters are those of
tatsu-lab/stanford_alpaca, generate_instruction.py).

A teacher is shown three seed tasks and writes new ones. Of these, the filter drops what is too short or too long, asks
for what text cannot hold (images, files), or is too like a task that is there already; the rest joins the pool with
which the next are compared. Nothing vanishes: what is dropped is returned with its reason.
"""

import math
import re
import string
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from minillama.config_checks import MOST, check_config, number

BLACKLIST = ("go to", *("image images graph graphs picture pictures file files map maps draw plot video audio music "
                        "flowchart diagram").split())
WORD = re.compile(r"[a-z0-9]+")  # what the rouge-score package calls a word
# Beyond English: scripts written without spaces, a character each; all else in runs.
ANY_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True)
class FilterRules:
    """What an instruction must be like. The defaults are Alpaca's."""

    similarity: float = number(0.7, 1e-6, 1)  # dropped from this ROUGE-L on (Alpaca's program: above it)
    min_words: int = number(4, 1, MOST)
    max_words: int = number(150, 1, MOST)
    english: bool = True  # the first letter must be ASCII; False: words of any script count
    blacklist: tuple = BLACKLIST  # whole words, in any case

    def __post_init__(self):
        check_config(self)
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}: lower it")
        if not all(isinstance(word, str) and word.strip() for word in self.blacklist):
            raise ValueError(f"blacklist is {self.blacklist!r}: give words that are not blank")


class Dropped(NamedTuple):
    """Why an instruction is not kept: a reason that can be counted, and what was found."""

    reason: str
    detail: str


def words_of(text, english=True):
    """The words that ROUGE compares: runs of a-z and 0-9 in lower case, all else parts them, as in rouge-score.
    english=False: runs of letters and digits of any script, and each Chinese or Japanese character by itself."""
    return (WORD if english else ANY_WORD).findall(text.lower())


def bits_of(words):
    """{word: an integer with bit i set where words[i] is that word}."""
    bits = defaultdict(int)
    for i, word in enumerate(words):
        bits[word] |= 1 << i
    return bits


def common_length(bits, m, others):
    """Length of the longest common subsequence of m words, given as `bits_of` them, and a list of others.

    A column of the usual m x n table rises by 0 or 1 from cell to cell, so it fits into m bits, and one addition
    makes the next column (Hyyro 2004, Bit-parallel LCS-length computation revisited): n operations on integers of m
    bits instead of m n on numbers.
    """
    full = (1 << m) - 1
    flat = full  # bit i: cell i is no higher than the one below it
    for word in others:
        hit = flat & bits.get(word, 0)
        flat = (flat + hit | flat - hit) & full
    return m - flat.bit_count()


class InstructionFilter:
    """`why_not(instruction)` says why it is dropped; one that is kept joins the pool for the next.

    Cost: one of m words is compared only with texts of the pool that hold one of its rarest words; who is as similar
    as `similarity` s must share s m / (2 - s) of the m, so more than the other words together cannot be missing. The
    answer is the one of comparing with all; the worst case is all, n operations on m bits for a text of n words.
    """

    def __init__(self, rules=None):
        self.rules = rules or FilterRules()
        self.texts, self._words, self._holding = [], [], defaultdict(list)  # word -> numbers of the texts that hold it
        escaped = "|".join(map(re.escape, self.rules.blacklist))
        self._blacklist = re.compile(rf"\b(?:{escaped})\b", re.IGNORECASE) if escaped else None

    def add(self, text):
        """Into the pool without a judgement, as the seeds are."""
        words = words_of(text, self.rules.english)
        for word in set(words):
            self._holding[word].append(len(self.texts))
        self.texts.append(text)
        self._words.append(words)

    def why_not(self, instruction, input=""):
        """`Dropped`, or None: then it has joined the pool. Form is asked of the instruction alone; what is compared
        is the instruction with its input, since one instruction with two inputs is two tasks. (Alpaca compares
        without the input.)"""
        instruction, task = instruction.strip(), f"{instruction.strip()} {input}".strip()
        dropped = self._form(instruction) or self._repetition(task)
        if dropped is None:
            self.add(task)
        return dropped

    def _form(self, text):
        rules = self.rules
        count = len(text.split() if rules.english else words_of(text, english=False))
        if count < rules.min_words:
            return Dropped("too short", f"{count} words")
        if count > rules.max_words:
            return Dropped("too long", f"{count} words")
        if self._blacklist and (found := self._blacklist.search(text)):
            return Dropped("blacklisted word", found[0])
        if text.startswith("Write a program"):  # the teacher adds it where it makes no sense
            return Dropped("asks for a program", "Write a program")
        if text[0] in string.punctuation:
            return Dropped("begins with punctuation", text[0])
        if rules.english and not text[0].isascii():
            return Dropped("not in English", text[0])
        return None

    def _repetition(self, text):
        similarity, number = self.nearest(text)
        if similarity < self.rules.similarity:
            return None
        return Dropped("too similar", f"ROUGE-L {similarity:.3f} with: {self.texts[number]}")

    def nearest(self, text):
        """(ROUGE-L, number in the pool) of the most similar text, the first of equals; (0.0, None) where none is as
        similar as the rules ask for. ROUGE-L of texts of m and n words is F = 2 L / (m + n), with L the length of their
        longest common subsequence (Lin 2004, equation 4 with beta 1)."""
        words, least, best = words_of(text, self.rules.english), self.rules.similarity, (0.0, None)
        bits, m = bits_of(words), len(words)
        for place in sorted(self._possible(words)):
            n = len(self._words[place])
            if 2 * min(m, n) >= max(least, best[0]) * (m + n):
                similarity = 2 * common_length(bits, m, self._words[place]) / (m + n)
                if similarity >= least and similarity > best[0]:
                    best = similarity, place
        return best

    def _possible(self, words):
        """Numbers of all texts that may be similar enough, found through the rarest words."""
        counts, least = Counter(words), self.rules.similarity
        missing = len(words) - math.ceil(least * len(words) / (2 - least) - 1e-9)  # at most so many are not shared
        found = set()
        for word in sorted(counts, key=lambda word: len(self._holding.get(word, ()))):
            if missing < 0:
                break
            found.update(self._holding.get(word, ()))
            missing -= counts[word]
        return found
