"""What each token of an answer was to the model, before temperature and filters: probability, rank, entropy, rivals."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from minillama.generate import generate_tokens, until_stop

LEAST = -9999.0  # stands for the logarithm of 0, which JSON has no word for (OpenAI's value)


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: its text, the facts of the tokens that made it, and at the end why it ended."""

    text: str
    tokens: tuple = ()
    finish: str | None = None  # "stop" or "length"
    index: int = 0  # of the choice that it belongs to


def label(tokenizer, index):
    """A token as it is shown: the piece of the vocabulary, with a space where SentencePiece marks one."""
    return tokenizer.id_to_piece(index).replace("\u2581", " ") or f"<{index}>"


def token_facts(tokenizer, logits_V: Tensor, token: int, n_top: int = 5) -> dict:
    """The model's own view of one step, in natural logarithms, before anything is cut or sampled.

    {"id", "token", "logprob", "rank" (1: the likeliest), "entropy" (-sum p ln p), "top_logprobs": the n_top likeliest}.
    """
    log_V = logits_V.float().log_softmax(-1)
    best = log_V.topk(min(n_top, len(log_V)))
    top = [{"id": index, "token": label(tokenizer, index), "logprob": max(value, LEAST)}
           for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    return {"id": token, "token": label(tokenizer, token), "logprob": max(log_V[token].item(), LEAST),
            "rank": 1 + int((log_V > log_V[token]).sum()), "entropy": torch.special.entr(log_V.exp()).sum().item(),
            "top_logprobs": top}


class AnswerRow:
    """One row of a batch on its way to `Piece`s: its text as `generate_text` spells it, and the facts of its tokens."""

    def __init__(self, index, tokenizer, ids, stop, stop_ids):
        self.index, self.stop, self.stop_ids = index, stop, stop_ids
        self.decoder, self.held, self.facts, self.finish = tokenizer.decoder(), "", [], None
        for known in ids:
            self.decoder.push(known)  # so that the first new piece is spelled as a continuation

    def take(self, token):
        """The `Piece` that a token completes, None where its text must wait; token None: no more will come."""
        ended = token is None or token in self.stop_ids
        spelled = self.decoder.flush() if ended else self.decoder.push(token)
        text, self.held, stopped = until_stop(self.held + spelled, self.stop)
        if ended and not stopped:
            text, self.held = text + self.held, ""
        if stopped or ended:
            self.finish = "length" if token is None and not stopped else "stop"
        if not text and self.finish is None:
            return None
        facts, self.facts = tuple(self.facts), []
        return Piece(text, facts, self.finish, self.index)


def answers(model, tokenizer, prompts, max_new_tokens, sampling, stop, seed, stop_ids, n_top=5):
    """Yield the `Piece`s of what `generate_tokens` writes behind `prompts`, lists of ids that are the rows of one
    batch, each spelled as `generate_text` spells it; the last of each row says why it ended.

    A token whose text must wait (half a character, the beginning of a stop string) comes with the next piece. A row
    that a stop string ended is decoded on while others need the batch, and not told.
    """
    rows = [AnswerRow(index, tokenizer, ids, stop, stop_ids) for index, ids in enumerate(prompts)]
    seen = []  # the scores of the step, of the rows that are still decoded
    steps = generate_tokens(model, prompts, max_new_tokens, sampling, stop_ids, seed,
                            watch=lambda logits_BV, _: seen.extend(logits_BV))
    for said_B in itertools.chain(steps, [[None] * len(rows)]):
        for row, token in zip(rows, said_B, strict=True):
            logits_V = None if token is None else seen.pop(0)
            if row.finish is not None:
                continue
            if token is not None:
                row.facts.append(token_facts(tokenizer, logits_V, token, n_top))
            if (piece := row.take(token)) is not None:
                yield piece
        if all(row.finish is not None for row in rows):
            return


@torch.inference_mode()
def read_text(model, tokenizer, ids, n_top=5):
    """The facts of each token of a text that is given, None for the first: how likely the model finds it."""
    if not ids:
        return []
    logits_TV = model(torch.tensor([ids], device=model.tok_embeddings.weight.device))[0]
    return [None, *(token_facts(tokenizer, logits_V, token, n_top)
                    for logits_V, token in zip(logits_TV[:-1], ids[1:], strict=True))]
