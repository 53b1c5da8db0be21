"""From votes to pairs: what people preferred, in the form a reward model learns from."""

import math
import random
from itertools import combinations
from typing import NamedTuple

from minillama.train.records import json_values, text_field


class Pair(NamedTuple):
    """Two answers to one prompt, the better one first."""

    prompt: str
    chosen: str
    rejected: str


def vote_score(upvotes, accepted):
    """log2(1 + upvotes), rounded, plus 1 for the accepted answer; -1 for any answer voted below zero.

    The rule of Askell et al. (arXiv 2112.00861, section 4.1), which StackLLaMA took over. The logarithm
    because the hundredth vote says less than the first; the rounding makes near-equal answers ties.

    >>> [vote_score(votes, False) for votes in (-3, 0, 1, 2, 3, 100)], vote_score(3, True)
    ([-1, 0, 1, 2, 2, 7], 3)
    """
    if upvotes < 0:
        return -1
    return round(math.log2(1 + upvotes)) + bool(accepted)


def thread_pairs(thread, most=10, seed=0):
    """The pairs of one thread whose scores differ, at most `most` of them, as a list of `Pair`.

    thread: anything with `question` and `answers`, each with `text`, `upvotes`, `accepted` (`corpus.forum.Thread`).
    Ties carry no preference. The bound keeps a popular question from drowning the others (n answers make n (n - 1) / 2
    pairs); which pairs stay is drawn from the seed and the question.
    """
    scored = [(vote_score(answer.upvotes, answer.accepted), answer.text) for answer in thread.answers]
    pairs = [Pair(thread.question, *((a, b) if score_a > score_b else (b, a)))
             for (score_a, a), (score_b, b) in combinations(scored, 2) if score_a != score_b and a != b]
    if len(pairs) > most:
        rng = random.Random(f"pairs {seed} {thread.question}")
        pairs = sorted(pairs, key=lambda _: rng.random())[:most]
    return pairs


def read_pairs(path):
    """A list of `Pair` from a JSON or JSONL file of objects {"prompt": ..., "chosen": ..., "rejected": ...}.

    Empty lines are passed over, further keys are ignored. ValueError in one line, `file:line: what`, for anything else.
    """
    pairs = list(_values(path, _pair))
    if not pairs:
        raise ValueError(f"{path}: no pair in it: write one JSON object a line, with the texts "
                         '"prompt", "chosen" and "rejected"')
    return pairs


def read_prompts(path):
    """The different prompts of a JSON or JSONL file of objects with a "prompt", such as a file of pairs, in order.
    Errors as in `read_pairs`."""
    prompts = list(dict.fromkeys(_values(path, lambda value: text_field(value, "prompt"))))
    if not prompts:
        raise ValueError(f'{path}: no prompt in it: write one {{"prompt": "..."}} a line')
    return prompts


def _values(path, read):
    """Yield read(object) for each of a file's JSON objects; its ValueError gets the place in front."""
    for line, value in json_values(path):
        try:
            if isinstance(value, ValueError):
                raise value
            if not isinstance(value, dict):
                raise ValueError(f"a JSON {type(value).__name__}, not an object with prompt, chosen and rejected")
            yield read(value)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None


def _pair(value):
    pair = Pair(*(text_field(value, name) for name in Pair._fields))
    if pair.chosen == pair.rejected:
        raise ValueError("fields 'chosen' and 'rejected' are the same text: such a pair says nothing, leave it out")
    return pair
