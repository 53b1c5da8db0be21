"""A question-and-answer forum from a seed, with a hidden quality behind every answer and noisy votes on top.

A question is "How do I {verb} a {adjective} {object}?". An answer opens politely, plainly or rudely, gives one step or
two, names the object or calls it "thing", and closes kindly, plainly or sourly. What learning from feedback should
raise is `quality(question, answer)`: it is read off the text alone, so it also judges what a model writes.
The sentences are forum.json; what they speak of is in stories.json.
"""

import json
import math
import random
import re
from pathlib import Path
from typing import NamedTuple

from minillama.corpus import stories
from minillama.corpus.grammar import Grammar

NOISE = 0.7  # standard deviation of a voter's opinion, in units of quality
ANSWERS = 2, 5  # fewest and most answers in a thread; five give ten pairs

RULES = json.loads(Path(__file__).with_name("forum.json").read_text(encoding="utf-8"))
RULES |= {slot: stories.RULES[word] for slot, word in (("spot", "place"), ("hour", "late"), ("minutes", "number"),
                                                       ("condition", "state"), ("paint", "colour"), ("object", "toy"))}
GRAMMAR = Grammar(RULES, start="{question} {answer}")


class Answer(NamedTuple):
    """One answer of a thread, with what the crowd and the asker made of it."""

    text: str
    upvotes: int
    accepted: bool


class Thread(NamedTuple):
    """A question and everything that was answered to it."""

    question: str
    answers: tuple  # of Answer


def documents(seed, n):
    """`n` questions, each followed by one answer, as `Document(text, bits)`."""
    return GRAMMAR.documents(random.Random(f"forum {seed}"), n)


def threads(seed, n):
    """`n` threads: a question with 2 to 5 answers, their votes, and one accepted by a noisy asker."""
    rng = random.Random(f"forum threads {seed}")
    return [_thread(rng) for _ in range(n)]


def _thread(rng):
    question = GRAMMAR.sample(rng, "{question}")
    fewest, most = ANSWERS
    count = fewest + int(rng.random() * (most - fewest + 1))
    texts = [GRAMMAR.sample(rng, "{answer}", question.chosen).text for _ in range(count)]
    hidden = [quality(question.text, text) for text in texts]
    votes = [upvotes(q + NOISE * _normal(rng)) for q in hidden]
    liking = [q + NOISE * _normal(rng) for q in hidden]
    best = liking.index(max(liking))
    return Thread(question.text, tuple(Answer(text, vote, i == best)
                                       for i, (text, vote) in enumerate(zip(texts, votes, strict=True))))


def upvotes(opinion):
    """2^opinion - 1 votes, rounded; below zero the mirror image, -(2^-opinion - 1)."""
    return round(2**opinion - 1) if opinion >= 0 else -round(2**-opinion - 1)


def _normal(rng):
    """A standard normal number by Box and Muller (1958) from `random()` alone, whose sequence Python guarantees."""
    return math.sqrt(-2 * math.log(1 - rng.random())) * math.cos(2 * math.pi * rng.random())


def quality(question, answer):
    """The hidden quality of any answer text to a question of the forum: an integer, at most +4.

    The sum of five parts; a sentence counts only where it belongs, and spacing does not count at all.

        opening   +1 if the first sentence is a polite one, -1 if a rude one, else 0
        steps     +1 if it holds one "First ..." and later one "Then ..." that does what was asked, and no other step
        object    +1 if a step does what was asked to the object asked about and none does otherwise, else -1
        closing   +1 if the last sentence is a kind one, -1 if a sour one, else 0
        strays    -1 for each sentence that nobody there would have written in its place, and for each step too many:
                  one is enough, or a "First ..." with its "Then ..."

    The forum's own answers have no strays, so theirs are from -3 to +4. ValueError for a question that is not the
    forum's.
    """
    asked = GRAMMAR.parse(" ".join(question.split()), "{question}").chosen
    found = re.findall(r"\S[^.!?]*[.!?]?", " ".join(answer.split()))
    sentences = found or [""]
    first = [i for i, text in enumerate(sentences) if derivation(text, "First {get} a {tool}.")]
    then = [(i, fit) for i, text in enumerate(sentences) if (fit := derivation(text, "Then {verb} the {named} {so}."))]
    just = [fit for text in sentences if (fit := derivation(text, "Just {verb} the {named} {so}."))]
    doing = [fit.chosen for fit in [fit for _, fit in then] + just]
    two = len(first) == len(then) == 1 and not just and first[0] < then[0][0] and doing[0]["verb"] == asked["verb"]
    right = [step["verb"] == asked["verb"] and step.get("object") == asked["object"] for step in doing]  # "thing": None
    opening = _manner(sentences[0], "{polite}", "{rude}")
    closing = _manner(sentences[-1], "{kind_close}", "{sour_close}")
    enough = 2 if first and then and first[0] < then[-1][0] else 1  # steps
    closed = closing != 0 or derivation(sentences[-1], "{plain_close}") is not None
    in_place = (opening != 0) + min(len(first) + len(doing), enough) + closed
    return opening + two + (1 if right and all(right) else -1) + closing - (len(found) - in_place)


def _manner(sentence, warm, cold):
    return bool(derivation(sentence, warm)) - bool(derivation(sentence, cold))


def derivation(text, template, given=None):
    """The `Derivation` of `text` from `template`, or None where the forum cannot have written it."""
    try:
        return GRAMMAR.parse(text, template, given)
    except ValueError:
        return None
