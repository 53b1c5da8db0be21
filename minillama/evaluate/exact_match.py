"""Exact match of what a model writes with the right answers: what counts of a text, and when two are equal.

What is taken out of an answer and what is ignored is as in EleutherAI's lm-evaluation-harness, since a score depends on
it: "$1,200." and "1200" are one answer, "twelve hundred" is another.
"""

import re
import string

from minillama.engine import MOST_ROWS
from minillama.generate import GREEDY, generate_tokens, prompt_ids

NONE_FOUND = "[invalid]"  # what stands for an answer in which the pattern finds nothing


def write_answers(model, tokenizer, prompts, max_new_tokens, stop, batch_size=MOST_ROWS):
    """What the model writes greedily behind each prompt, up to the first of the texts in `stop`, an end token or
    max_new_tokens. A prompt that leaves no room for them loses its beginning. ValueError where none can."""
    room = model.config.max_seq_len - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} leave no room for a question: the model's max_seq_len is "
                         f"{model.config.max_seq_len}")
    rows = [prompt_ids(tokenizer, prompt)[-room:] for prompt in prompts]
    return write_texts(model, tokenizer, rows, max_new_tokens, stop, batch_size=batch_size)


def write_texts(model, tokenizer, rows, max_new_tokens, stop=(), stop_ids=None, batch_size=MOST_ROWS):
    """What `generate_text` writes greedily behind each of some rows of ids, several rows at once."""
    ends, texts = tokenizer.end_ids if stop_ids is None else stop_ids, [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # of like length: little padding
    for batch in (order[first:first + batch_size] for first in range(0, len(order), batch_size)):
        decoders, going = {number: tokenizer.decoder() for number in batch}, set(batch)
        for number in batch:
            for known in rows[number]:
                decoders[number].push(known)  # so that the first new piece is spelled as a continuation
        for said in generate_tokens(model, [rows[number] for number in batch], max_new_tokens, GREEDY, ends):
            for number, token in zip(batch, said, strict=True):
                texts[number] += "" if token is None or token in ends else decoders[number].push(token)
                if token is None or token in ends or any(word in texts[number] for word in stop):
                    going.discard(number)
            if not going:
                break
        for number in batch:
            text = texts[number] + decoders[number].flush()
            found = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
            texts[number] = text[:min(found)[1]] if found else text  # the one that ends first
    return texts


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
