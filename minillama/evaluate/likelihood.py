"""How likely a model finds a text: the choices of a question, each behind its context, or a text as a whole.

A multiple-choice benchmark lets the model answer by the choice whose log-likelihood, log p(choice | context) summed
over the choice's tokens, is largest. Long choices are unlikely for their length alone, so most benchmarks divide it.
Which tokens are the choice's, and by what is divided, is as in EleutherAI's lm-evaluation-harness, the program that
published tables are made with.
"""

import math
import re

import numpy as np
import torch

from minillama.collate import pad_rows
from minillama.generate import prompt_ids
from minillama.train.data import Tokens
from minillama.train.perplexity import in_eval_mode, model_nats


def encode_pair(tokenizer, context, continuation):
    """(ids of the context, ids of the continuation) of two texts that stand next to each other.

    The whole is tokenized at once, as the model would read it, and cut where the context's own tokens end. Blanks at
    the context's end belong to the continuation: most vocabularies have them at a word's begin. An empty context is
    bos, or eos where the tokenizer has no bos. ValueError where the continuation has no token of its own.
    """
    bare = context.rstrip()
    continuation = context[len(bare):] + continuation
    if bare:
        front = prompt_ids(tokenizer, bare)
        rest = prompt_ids(tokenizer, bare + continuation)[len(front):]
    else:
        front = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
        rest = tokenizer.encode(continuation)
    if not rest:
        raise ValueError(f"the choice {continuation!r} has no token of its own behind {bare[-40:]!r}: give a text")
    return front, rest


@torch.no_grad()
def log_likelihoods(model, pairs, batch_size=16):
    """log p(continuation | context) in nats of each pair (ids of the context, ids of the continuation), as a list.

    A context that is too long for the model loses its beginning. What the model reads for several pairs, such as
    one question with the letters A to D, it reads once. Log-softmax in fp32, the sum in float64. ValueError for a
    continuation of no token, of more than max_seq_len, or of a likelihood that is not finite.
    """
    longest, device = model.config.max_seq_len, model.tok_embeddings.weight.device
    asked: dict = {}  # what the model reads: the numbers of the pairs that this answers
    for number, (context, continuation) in enumerate(pairs):
        if not context or not 0 < len(continuation) <= longest:
            raise ValueError(f"pair {number} has {len(context)} tokens of context and {len(continuation)} to score: at "
                             f"least one of each is needed, and at most {longest} to score, the model's max_seq_len")
        asked.setdefault(tuple([*context, *continuation][-longest - 1:-1]), []).append(number)
    found, rows = [0.0] * len(pairs), sorted(asked, key=len, reverse=True)  # of like length: little padding
    with in_eval_mode(model):
        for first in range(0, len(rows), batch_size):
            batch = rows[first:first + batch_size]
            hidden_BTD = model.hidden_states(pad_rows(batch, device=device))  # pads on the right see, and are not seen
            for row, hidden_TD in zip(batch, hidden_BTD, strict=True):
                for number in asked[row]:
                    found[number] = _sum_of(model, hidden_TD[:len(row)], pairs[number][1])
    return found


def _sum_of(model, hidden_TD, continuation):
    """The log-likelihood of n ids, which the last n places predict."""
    log_p_NV = model.logits(hidden_TD[-len(continuation):]).log_softmax(-1)
    ids_N = torch.tensor(continuation, device=log_p_NV.device)
    total = log_p_NV.gather(-1, ids_N[:, None]).double().sum().item()
    if not math.isfinite(total):
        raise ValueError(f"a log-likelihood is {total}: the model's weights are damaged, or overflow their dtype: try "
                         "--dtype float32")
    return total


def chosen(sums, choices, n_tokens, unconditional=None):
    """{measure: number of the choice taken} by the choices' log-likelihoods L and texts; of equal ones the first.

    acc: the largest L. acc_norm: the largest L / characters. acc_bytes: L / bytes of UTF-8. acc_token: L / tokens.
    acc_pmi, where `unconditional` gives the log-likelihoods behind a context that asks nothing: L less those, the
    pointwise mutual information of question and choice (arXiv 2005.14165, section 2.4).
    """
    lengths = {"acc": [1] * len(choices), "acc_norm": [len(choice) for choice in choices],
               "acc_bytes": [len(choice.encode()) for choice in choices], "acc_token": n_tokens}
    taken = {name: int(np.argmax(np.array(sums) / np.array(length, float))) for name, length in lengths.items()}
    if unconditional is not None:
        taken["acc_pmi"] = int(np.argmax(np.array(sums) - np.array(unconditional)))
    return taken


def text_nats_and_counts(model, tokenizer, text, stride=None, batch_size=16):
    """{"nats", "tokens", "bytes", "words"} of a text: minus its log-likelihood, and what it may be divided by.

    exp(nats / bytes) and exp(nats / words) compare models of different vocabularies; per token only the same one. A
    window of max_seq_len tokens slides by `stride` (`train.perplexity.model_nats`). The text stands behind bos, which
    is given and not counted. Words are what white space parts, counted as the harness does.
    """
    ids = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id, *tokenizer.encode(text)]
    row = Tokens(np.array(ids), model.config.vocab_size)
    nats, n_tokens = model_nats(model, row, stride=stride, batch_size=batch_size)
    return {"nats": nats, "tokens": int(n_tokens), "bytes": len(text.encode()), "words": len(re.split(r"\s+", text))}
