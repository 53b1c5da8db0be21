"""Which documents of a raw text are worth learning from, in languages with spaces and without.

The order is CCNet's (arXiv 1911.00359), which LLaMA's data went through (arXiv 2302.13971, section 2.1): repeated
lines, rules, near-duplicates (`minhash`), then an n-gram model that sorts what is left by perplexity. The rules about
length, punctuation and repetition follow C4 (arXiv 1910.10683, section 2.2) and Gopher (arXiv 2112.11446, appendix A),
with a character of Chinese or Japanese counted as a word. Each reason is a word, and each rule one number.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import regex

from lessons.minhash import hash_runs, hash_word, words
from minillama.config_checks import MOST, check_config, number
from minillama.corpus.char_ngram import CharNgram
from minillama.tokenizer.unicode_script import RANGES

LANGUAGES = {"chinese": ("Han",), "japanese": ("Hiragana", "Katakana"), "korean": ("Hangul",), "latin": ("Latin",),
             "greek": ("Greek",), "cyrillic": ("Cyrillic",), "arabic": ("Arabic",), "hebrew": ("Hebrew",),
             "devanagari": ("Devanagari",), "thai": ("Thai",)}  # name: its scripts; Latin and others serve many
OTHER = "other"
KANA_SHARE = 0.1  # of the letters: Japanese text holds Han characters too, but Chinese text no kana
SENTENCE_END = regex.compile(r"[.?!…][\"'”’)]*(?=\s|$)|[。？！…][”’」』）]*")
NOT_INSIDE = r"(?!(?<=\p{Latin})\p{Latin})"  # not between two Latin letters
NGRAM = 4  # characters, of the perplexity's model
SCORED = 2000  # characters of a document that the n-gram model reads
FEATURES = 1 << 16  # of the quality classifier: words and pairs of words share them by hash


@dataclass(frozen=True)
class CleaningRules:
    """What a document must be like; a share is of the document's characters or words."""

    min_words: int = number(20, 1, MOST)
    max_words: int = number(100_000, 1, MOST)  # Gopher's bound
    min_letters: float = number(0.6, 0, 1)  # share of letters and spaces: menus and tables have fewer
    min_sentence_ends: int = number(1, 0, MOST)
    min_distinct: float = number(0.3, 0, 1)  # share of different pairs of words: less is one sentence over and over
    repeated_lines: int = number(5, 2, MOST)  # a line in so many documents is boilerplate, and is left out of all
    similarity: float = number(0.7, 0.3, 1)  # estimated Jaccard similarity from which a document is a copy

    def __post_init__(self):
        check_config(self)
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}: lower it")


def find_fault(text, rules, languages=(), listed=None):
    """(reason, detail) of the first rule that a document breaks, or None.

    languages: those allowed, of LANGUAGES; none: all. listed: the pattern of `compile_word_list`.
    """
    found = words(text)
    if not rules.min_words <= len(found) <= rules.max_words:
        return "length", f"{len(found)} words"
    if languages and (language := find_language(text)) not in languages:
        return "language", language
    letters = sum(map(str.isalpha, text)) + sum(map(str.isspace, text))
    if letters < rules.min_letters * len(text):
        return "letters", f"{letters / len(text):.0%} letters"
    ends = len(SENTENCE_END.findall(text))
    if ends < rules.min_sentence_ends:
        return "sentences", f"{ends} ends of sentences"
    pairs = len(set(zip(found, found[1:], strict=False)))
    if pairs < rules.min_distinct * (len(found) - 1):
        return "repetition", f"{pairs} different of {len(found) - 1} pairs of words"
    if listed and (match := listed.search(text)):
        return "word list", match[0]
    return None


def find_language(text):
    """The language, of LANGUAGES, whose script most letters of a text belong to; languages of one script are not
    told apart. Han characters among kana are Japanese.

    >>> find_language("Where is it?"), find_language("它在哪里？"), find_language("どこですか。"), find_language("42")
    ('latin', 'chinese', 'japanese', 'other')
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(_language_of_code()[codes], minlength=len(LANGUAGES) + 1)
    by_name = dict(zip(LANGUAGES, counts[1:].tolist(), strict=True))
    if by_name["japanese"] > KANA_SHARE * (by_name["japanese"] + by_name["chinese"]):
        by_name["japanese"] += by_name.pop("chinese")
    best = max(by_name, key=by_name.get)
    return best if by_name[best] else OTHER


@cache
def _language_of_code():
    """For each code point 1 + the number of its language in LANGUAGES, 0 for none."""
    table = np.zeros(0x110000, np.uint8)
    number_of = {script: i for i, scripts in enumerate(LANGUAGES.values(), 1) for script in scripts}
    for first, last, script in RANGES:
        table[first : last + 1] = number_of.get(script, 0)
    return table


def without_lines(text, boilerplate):
    """A text without the lines whose hash is in the set."""
    if not boilerplate:
        return text
    return "\n".join(line for line in text.split("\n") if hash_word(even_out(line)) not in boilerplate).strip()


def compile_word_list(listed):
    """A pattern that finds any of the words or phrases, whatever their case, but no part of a word in Latin letters:
    "ass" is not found in "class". listed: a file's path, or lines. ValueError where there are none.

    >>> compile_word_list(["ass", "博彩"]).findall("A class of its own, ass: WWW网上博彩BET")
    ['ass', '博彩']
    """
    if isinstance(listed, Path):
        listed = listed.read_text(encoding="utf-8").splitlines()
    listed = {word for line in listed if (word := line.strip())}
    if not listed:
        raise ValueError("the list of words is empty: give one a line")
    return regex.compile(rf"{NOT_INSIDE}\L<listed>{NOT_INSIDE}", regex.IGNORECASE, listed=listed)


class PerplexityModel:
    """An n-gram model of characters in lower case, with runs of white space as one space.

    Perplexity is 2^(bits per character): gibberish has many times that of a text like those it has read.
    """

    def __init__(self, texts):
        self.model = CharNgram(NGRAM).fit("\n".join(map(even_out, texts)))

    def perplexity(self, text):
        """Of the first SCORED characters of a text."""
        return 2 ** self.model.bits_per_character(even_out(text[:SCORED]) or "\n")


def even_out(text):
    """Lower case, and every run of white space one space."""
    return " ".join(text.lower().split())


def hash_words(text):
    """uint64 hashes of a text's words: (W,)."""
    return np.fromiter(map(hash_word, words(text)), np.uint64)


def count_features(text):
    """How often each word and pair of words stands in a text, by its hash: (FEATURES,)."""
    codes = hash_words(text)
    both = np.concatenate([codes, hash_runs(codes, 2)]) if len(codes) > 1 else codes
    return np.bincount((both >> np.uint64(48)).astype(np.int64), minlength=FEATURES)


class QualityClassifier:
    """Whether a document is more like some good ones than like any: a linear classifier in closed form.

    The weight of a feature is the logarithm of how much more often good documents hold it than the others,
    w = log((g + 1) / (G + F)) - log((o + 1) / (O + F)), with g and o its counts, G and O those of all F features (naive
    Bayes; Manning, Raghavan and Schuetze 2008, section 13.2). A document's quality is its mean weight: 0 is neither.
    LLaMA trained one of the references of Wikipedia against pages drawn at random.
    """

    def __init__(self, good, others):
        good, others = (sum(map(count_features, texts), np.ones(FEATURES)) for texts in (good, others))
        self.weights = np.log(good / good.sum()) - np.log(others / others.sum())

    def quality(self, text):
        """The mean weight of the features of a text, in nats; 0 of an empty one."""
        counts = count_features(text)
        return float(counts @ self.weights / max(counts.sum(), 1))


def split_by_perplexity(perplexities):
    """CCNet's buckets: 0 (head), 1 (middle) or 2 (tail) for each number, a third of all in each."""
    limits = np.quantile(perplexities, [1 / 3, 2 / 3]) if len(perplexities) else []
    return np.searchsorted(limits, perplexities)
