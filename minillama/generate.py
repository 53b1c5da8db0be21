"""Generation: read the prompt in one pass, then one token at a time, each fed back, until a stop rule holds."""

from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minillama.collate import pad_rows, real_tokens, tokens_in_rows
from minillama.config import ModelConfig
from minillama.engine import MOST_ROWS, engine_for
from minillama.kv_cache import KVCache
from minillama.sampling import Sampling, row_chances, sample
from minillama.transformer import Transformer

GREEDY = Sampling(temperature=0.0)


def prefill(model: Transformer, tokens_BT: Tensor, cache: KVCache, chunk: int = 512) -> Tensor:
    """Read the prompt into the cache, `chunk` tokens at a time (memory of attention: chunk x T instead of T x T).

    Returns the scores after its last token, (B, V) fp32. Chunks of any size give the same scores.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: it must be at least 1 token")
    for part_BT in tokens_BT.split(chunk, dim=1):
        hidden_BTD = model.hidden_states(part_BT, cache)
    return model.logits(hidden_BTD[:, -1:])[:, -1]


@torch.inference_mode()
def generate_tokens(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int,
                    sampling: Sampling = GREEDY, stop_ids: Collection[int] = (), seed: int = 0,
                    chunk: int = 512, watch: Any = lambda *_: None, chances: Any = None) -> Iterator[list[int | None]]:
    """Yield, step by step, the next token of every prompt: a list of B ids, None for rows that have stopped.

    prompts: lists of ids. A row ends with (and yields) the first of `stop_ids`, after max_new_tokens, or when the
    model's max_seq_len is full of its own tokens. Greedy by default; the same seed gives the same text, and a row the
    text that it gets alone, but for rounding: padding uses none of its context, and it has random numbers of its own
    (`chances`, or `row_chances`). Up to 8 rows run on `engine_for`, if any. watch(scores_BV, tokens_B): each step.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 0 or more")
    weight, config = model.tok_embeddings.weight, model.config
    tokens_BT = pad_rows(prompts, left=True, device=weight.device)
    pad_B = (~real_tokens(prompts, left=True, device=weight.device)).sum(-1)
    check_prompt(config, tokens_BT)
    # The scores at the last place of the context give one token more.
    budgets = [min(max_new_tokens, config.max_seq_len - len(prompt) + 1) for prompt in prompts]
    cache = KVCache(config, len(prompts), tokens_BT.shape[1] + max(budgets), model.cache_dtype or weight.dtype,
                    weight.device, pad_B if pad_B.any() else None)
    u_Bn = row_chances(prompts, max(budgets), seed, weight.device) if chances is None else chances
    seen_BV, rows = tokens_in_rows(prompts, config.vocab_size, weight.device), list(range(len(prompts)))
    engine = engine_for(model)
    for step in range(max(budgets)):
        if engine and tokens_BT.shape[1] == 1 and len(tokens_BT) <= MOST_ROWS:
            logits_BV = engine.step(tokens_BT[:, 0], cache)
        else:
            logits_BV = prefill(model, tokens_BT, cache, chunk)
        next_B = sample(logits_BV, sampling, None, seen_BV, u_Bn[:, step])
        watch(logits_BV, next_B)
        said = dict(zip(rows, next_B.tolist(), strict=True))
        yield [said.get(row) for row in range(len(prompts))]
        kept = [place for place, row in enumerate(rows) if said[row] not in stop_ids and step + 1 < budgets[row]]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.keep_rows(kept)
            seen_BV, u_Bn, next_B = seen_BV[kept], u_Bn[kept], next_B[kept]
            rows = [rows[place] for place in kept]
        tokens_BT = next_B[:, None]
        seen_BV.scatter_(1, tokens_BT, True)


def generate_text(model: Transformer, tokenizer: Any, prompt: str | Sequence[int] = "", max_new_tokens: int = 256,
                  sampling: Sampling = GREEDY, stop: Sequence[str] = (), seed: int = 0,
                  stop_ids: Collection[int] | None = None, watch: Any = lambda *_: None) -> Generator[str, None, str]:
    """Yield the continuation of `prompt`, a text or a list of ids, in pieces of text, as it is made; never half a
    character.

    Stops at the tokenizer's `end_ids` (`stop_ids` overrides), at the first of the strings in `stop` (which is not
    yielded), after max_new_tokens, or when the model's context is full. Returns which of these it was: "end", "stop",
    "length" or "context".
    """
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop is {stop!r}: give a tuple of strings, none of them empty")
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    stop_ids = tokenizer.end_ids if stop_ids is None else stop_ids
    decoder, held = tokenizer.decoder(), ""
    for known in ids:
        decoder.push(known)  # so that the first new piece is spelled as a continuation
    made, token = 0, None
    for (token,) in generate_tokens(model, [ids], max_new_tokens, sampling, stop_ids, seed, watch=watch):
        made += 1
        held += "" if token in stop_ids else decoder.push(token)
        shown, held, stopped = until_stop(held, stop)
        if shown:
            yield shown
        if stopped:
            return "stop"
    shown, held, stopped = until_stop(held + decoder.flush(), stop)
    if shown + ("" if stopped else held):
        yield shown + ("" if stopped else held)
    return "stop" if stopped else "end" if token in stop_ids else "length" if made == max_new_tokens else "context"


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """A text as the model reads it: behind bos where its files say so, and where nothing else would be read."""
    return tokenizer.encode(text, bos=tokenizer.begins or not text and tokenizer.bos_id is not None)


def until_stop(text: str, stop: Sequence[str]) -> tuple[str, str, bool]:
    """Split into what may be shown, what must wait (a stop string may be starting there), and whether one came."""
    found = [(start + len(word), start) for word in stop if (start := text.find(word)) >= 0]
    if found:
        return text[:min(found)[1]], "", True  # the one that ends first, so that the size of pieces does not matter
    waiting = max((n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)
    return text[:len(text) - waiting], text[len(text) - waiting:], False


def check_prompt(config: ModelConfig, tokens_BT: Tensor) -> None:
    """ValueError where a model cannot read these tokens."""
    if tokens_BT.shape[1] > config.max_seq_len:
        raise ValueError(f"the prompt has {tokens_BT.shape[1]} tokens and this model attends over "
                         f"{config.max_seq_len}: shorten it")
    unknown = tokens_BT[(tokens_BT < 0) | (tokens_BT >= config.vocab_size)]
    if len(unknown):
        raise ValueError(f"the prompt holds the id {unknown[0].item()} and this model knows 0 to "
                         f"{config.vocab_size - 1}: the tokenizer belongs to another model")
