"""What is kept for exams, the prompts that a hash chooses, and how long an answer may be there and in practice."""

import sys

from minillama.config_checks import check
from minillama.rlhf.preferences import read_pairs
from minillama.train.data import FRACTION, question_held_out

LONGEST_ANSWER = 128  # tokens that PPO lets an answer have, even where the pairs hold longer ones


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
