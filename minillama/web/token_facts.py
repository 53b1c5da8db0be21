"""What each token of an answer was to the model, before temperature and filters: probability, rank, entropy, rivals."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillama.generate import until_stop
from minillama.sampling import row_chances
from minillama.web.row_batch import Row, RowBatch

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
    log_V = logits_V.float().log_softmax(-1).clamp_(min=LEAST)
    best = log_V.topk(min(n_top, len(log_V)))
    top = [{"id": index, "token": label(tokenizer, index), "logprob": value}
           for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    found_V = log_V.numpy(force=True)  # brought once where it lies on a GPU; NumPy counts faster
    return {"id": token, "token": label(tokenizer, token), "logprob": float(found_V[token]),
            "rank": 1 + int(np.count_nonzero(found_V > found_V[token])), "entropy": -float(np.exp(found_V) @ found_V),
            "top_logprobs": top}


class AnswerRow(Row):
    """A row of a batch that tells `Piece`s: its text as `generate_text` spells it, and the facts of its tokens.

    A token whose text must wait (half a character, the beginning of a stop string) comes with the next piece. n_top:
    None where no more than the tokens' ids are asked for.
    """

    def __init__(self, index, tokenizer, stop, n_top, model, ids, *asked):
        super().__init__(model, ids, *asked)
        self.index, self.tokenizer, self.stop, self.n_top = index, tokenizer, stop, n_top
        self.decoder, self.held, self.facts = tokenizer.decoder(), "", []
        for known in ids:
            self.decoder.push(known)  # so that the first new piece is spelled as a continuation

    def take(self, logits_1V):
        """The `Piece` that the next token completes, None where its text must wait."""
        self.draw(logits_1V)
        self.facts.append({"id": self.token} if self.n_top is None else
                          token_facts(self.tokenizer, logits_1V[0], self.token, self.n_top))
        ended = self.token in self.stop_ids
        return self.told("" if ended else self.decoder.push(self.token), "stop" if ended else "length")

    def end(self):
        """The `Piece` of a row that may have no token."""
        return self.told("", "length")

    def told(self, text, why):
        """The `Piece` of what is new; where the row has ended it is the last, and says why."""
        text, self.held, stopped = until_stop(self.held + text + ("" if self.left else self.decoder.flush()), self.stop)
        if not self.left and not stopped:
            text, self.held = text + self.held, ""
        if stopped:
            self.left = 0
        if not text and self.left:
            return None
        facts, self.facts = tuple(self.facts), []
        return Piece(text, facts, None if self.left else "stop" if stopped else why, self.index)


def answer_rows(model, tokenizer, prompts, max_new_tokens, sampling, stop, seed, stop_ids, n_top=5):
    """The `AnswerRow`s of one request: what `generate_tokens` writes behind `prompts`, lists of ids."""
    most = min(max_new_tokens, model.config.max_seq_len)
    chances_Bn = row_chances(prompts, most, seed, model.tok_embeddings.weight.device)
    return [AnswerRow(index, tokenizer, stop, n_top, model, ids, most, sampling, stop_ids, chances_n)
            for index, (ids, chances_n) in enumerate(zip(prompts, chances_Bn, strict=True))]


def answers(model, *asked):
    """Yield the `Piece`s of `answer_rows` of the same arguments, as rows of one batch."""
    batch = RowBatch(model)
    told = batch.join(answer_rows(model, *asked))
    while told:
        yield from (piece for _, piece in told if piece is not None)
        told = batch.step()


@torch.inference_mode()
def read_text(model, tokenizer, ids, n_top=5):
    """The facts of each token of a text that is given, None for the first: how likely the model finds it."""
    if not ids:
        return []
    logits_TV = model(torch.tensor([ids], device=model.tok_embeddings.weight.device))[0]
    return [None, *(token_facts(tokenizer, logits_V, token, n_top)
                    for logits_V, token in zip(logits_TV[:-1], ids[1:], strict=True))]
