"""What each token of an answer was to the model, before temperature and filters: probability, rank, entropy, rivals."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillama.generate import generate_text

LEAST = -9999.0  # stands for the logarithm of 0, which JSON has no word for (OpenAI's value)


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: its text, the facts of the tokens that made it, and at the end why it ended."""

    text: str
    tokens: tuple = ()
    finish: str | None = None  # "stop" or "length"


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


def answer(model, tokenizer, ids, max_new_tokens, sampling, stop, seed, stop_ids, n_top=5):
    """Yield the `Piece`s of what `generate_text` writes with the same arguments; the last one says why it ended.

    A token whose text must wait (half a character, the beginning of a stop string) comes with the next piece.
    """
    waiting = []

    def watch(logits_BV, next_B):
        waiting.append(token_facts(tokenizer, logits_BV[0], int(next_B[0]), n_top))

    def taken():
        facts = tuple(waiting)
        waiting.clear()
        return facts

    pieces = generate_text(model, tokenizer, ids, max_new_tokens, sampling, stop, seed, stop_ids, watch)
    while True:
        try:
            text = next(pieces)
        except StopIteration as ended:
            yield Piece("", taken(), "stop" if ended.value in ("stop", "end") else "length")
            return
        yield Piece(text, taken())


@torch.inference_mode()
def read_text(model, tokenizer, ids, n_top=5):
    """The facts of each token of a text that is given, None for the first: how likely the model finds it."""
    if not ids:
        return []
    logits_TV = model(torch.tensor([ids], device=model.tok_embeddings.weight.device))[0]
    return [None, *(token_facts(tokenizer, logits_V, token, n_top)
                    for logits_V, token in zip(logits_TV[:-1], ids[1:], strict=True))]
