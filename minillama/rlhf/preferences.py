"""From votes to pairs: what people preferred, in the form a reward model learns from; which prompts are held out, and
how long answers may be."""

import math
import random
import sys
from itertools import combinations
from typing import NamedTuple

from minillama.config_checks import check
from minillama.train.data import FRACTION, question_held_out
from minillama.train.records import json_values, text_field

LONGEST_ANSWER = 128  # tokens that PPO lets an answer have, even where the pairs hold longer ones


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


def split_by_prompt(pairs, fraction):
    """(train, held-out): all pairs of a prompt on the side that a hash of the prompt chooses."""
    check("held_out_fraction", fraction, float, FRACTION)
    parts = [], []
    for pair in pairs:
        parts[question_held_out(pair.prompt, fraction)].append(pair)
    if not all(parts):
        raise ValueError(f"{len(pairs)} pairs leave the {'held-out' if parts[0] else 'training'} side empty at a "
                         f"held-out fraction of {fraction}: they have {len({pair.prompt for pair in pairs})} prompts, "
                         "give 50 or more, or another fraction")
    return parts


def split_prompts(prompts, fraction):
    """(to practise, to be asked in exams, at most 128), by the hash of `split_by_prompt`. Of prompts too
    few for two sides all are practised, and a line on stderr says so."""
    parts = [], []
    for prompt in prompts:
        parts[question_held_out(prompt, fraction)].append(prompt)
    if all(parts):
        return parts[0], parts[1][:128]
    print(f"{len(prompts)} prompts are too few to hold some out: the policy is kept as it ends", file=sys.stderr)
    return list(prompts), []


def answer_tokens(pairs, tokenizer, room):
    """How many tokens an answer may have: two more than the longest in the pairs, at most LONGEST_ANSWER and `room`."""
    longest = max(len(tokenizer.encode(text)) for pair in pairs for text in (pair.chosen, pair.rejected))
    return min(longest + 2, LONGEST_ANSWER, room)


def answer_tokens_in(path, tokenizer, room):
    """`answer_tokens` of a file of prompts, if it holds pairs; prompts alone say nothing of answers: 64."""
    try:
        pairs = read_pairs(path)
    except ValueError:
        return min(64, room)
    return answer_tokens(pairs, tokenizer, room)
