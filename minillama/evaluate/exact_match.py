"""Exact match of what a model writes with the right answers: what counts of a text, and when two are equal.

What is taken out of an answer and what is ignored is as in EleutherAI's lm-evaluation-harness, since a score depends on
it: "$1,200." and "1200" are one answer, "twelve hundred" is another.
"""

import re
import string

from minillama.generate import generate_text, prompt_ids

NONE_FOUND = "[invalid]"  # what stands for an answer in which the pattern finds nothing


def write_answer(model, tokenizer, prompt, max_new_tokens, stop):
    """What the model writes greedily behind a prompt, up to the first of the texts in `stop`, an end token or
    max_new_tokens. A prompt that leaves no room for them loses its beginning. ValueError where none can."""
    room = model.config.max_seq_len - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} leave no room for a question: the model's max_seq_len is "
                         f"{model.config.max_seq_len}")
    ids = prompt_ids(tokenizer, prompt)[-room:]
    return "".join(generate_text(model, tokenizer, ids, max_new_tokens, stop=stop))


def extract(text, pattern, place=0):
    """The match of `pattern` number `place` in a text (its first group with a text, where it has groups), or
    NONE_FOUND.

    >>> extract("3 + 4 is 7, so #### 7", r"#### ([0-9]+)"), extract("3 + 4 is 7", r"(-?[0-9]+)", -1)
    ('7', '7')
    """
    found = re.findall(pattern, text)
    if not found:
        return NONE_FOUND
    match = found[place]
    return (next((group for group in match if group), NONE_FOUND) if isinstance(match, tuple) else match).strip()


def normalize(text, ignore=(), punctuation=True):
    """The text without what the patterns in `ignore` match, in small letters; without punctuation unless it counts."""
    for pattern in ignore:
        text = re.sub(pattern, "", text)
    return text.lower() if punctuation else text.lower().translate(str.maketrans("", "", string.punctuation))


def exact_match(text, targets, ignore=(), punctuation=True):
    """Whether a text is one of the right ones, both normalized."""
    return any(normalize(text, ignore, punctuation) == normalize(target, ignore, punctuation) for target in targets)
