"""Texts that are continued side by side: rows join a batch, and leave it, between any two of its steps.

This is continuous batching (Yu et al., Orca, OSDI 2022, section 3.1, "iteration-level scheduling"). A row's prompt is
read alone and its draws are its own, so each row gets what `generate_tokens` gives it alone: bit for bit where
`RowBatch.exact`, elsewhere but for rounding.
"""

import torch
from torch import Tensor

from minillama.collate import tokens_in_rows
from minillama.engine import MOST_ROWS, engine_for
from minillama.generate import check_prompt, prefill
from minillama.kv_cache import KVCache
from minillama.quant.gguf_linear import GGUFLinear
from minillama.quant.int8 import Int8Linear
from minillama.sampling import sample


class Row:
    """A text that a batch continues. chances_n: the numbers u of its draws, as `sampling.row_chances` makes them."""

    def __init__(self, model, ids, max_new_tokens, sampling, stop_ids, chances_n: Tensor):
        self.ids, self.sampling, self.stop_ids, self.chances_n = ids, sampling, stop_ids, chances_n
        check_prompt(model.config, torch.tensor([ids]))
        # As in `generate_tokens`: the scores at the last place of the context give one token more.
        self.left = min(max_new_tokens, model.config.max_seq_len - len(ids) + 1)
        self.seen_1V = tokens_in_rows([ids], model.config.vocab_size, model.tok_embeddings.weight.device)
        self.made, self.token = 0, -1  # -1: none yet

    def draw(self, logits_1V: Tensor):
        """Take the next token from its scores; the row has ended where `left` is 0 then."""
        u_1 = self.chances_n[self.made:self.made + 1]
        self.token = int(sample(logits_1V, self.sampling, None, self.seen_1V, u_1))
        self.seen_1V[0, self.token] = True
        self.made += 1
        self.left = 0 if self.token in self.stop_ids else self.left - 1

    def take(self, logits_1V: Tensor):
        """What is told of the step that gave these scores."""
        self.draw(logits_1V)
        return self.token

    def end(self):
        """What is told of a row that may have no token at all."""


class RowBatch:
    """Rows that a model continues side by side; those whose `left` is 0 leave at the next step.

    exact: whether a row has the bits that it has alone. So it is where the engine decodes, but for LLM.int8, in which
    an outlier in one row changes how all are rounded, and for GGUF's blocks with activations in int8, of which one row
    is summed in an order of its own. PyTorch's products sum otherwise in batches of another size.
    """

    def __init__(self, model):
        self.model, self.engine, self.rows, self.cache = model, engine_for(model), [], None
        self.exact = self.engine is not None and not any(
            isinstance(layer, Int8Linear) or isinstance(layer, GGUFLinear) and layer.activations == "int8"
            for layer in model.modules())

    @torch.inference_mode()
    def join(self, rows):
        """Read the prompts of `rows`, each once, and let the rows in: [(row, what it tells of its first token)]."""
        read = {tuple(row.ids): None for row in rows if row.left}
        for ids in read:
            cache = KVCache(self.model.config, 1, len(ids), self.dtype, self.device)
            read[ids] = cache, self.scores(torch.tensor([ids], device=self.device), cache)
        told = [(row, row.take(read[tuple(row.ids)][1]) if row.left else row.end()) for row in rows]
        parts = [(row, self.cache, place) for place, row in enumerate(self.rows) if row.left]
        joined = [(row, read[tuple(row.ids)][0], 0) for row in rows if row.left]
        if joined:  # where no memory is left for this, the rows that are here go on as they were
            self.cache = self.side_by_side([*parts, *joined])
            self.rows = [row for row, *_ in (*parts, *joined)]
        return told

    @torch.inference_mode()
    def step(self):
        """Continue each row by a token: [(row, what it tells of it)]."""
        self.leave()
        if not self.rows:
            return []
        logits_BV = self.scores(torch.tensor([[row.token] for row in self.rows], device=self.device), self.cache)
        return [(row, row.take(logits_1V)) for row, logits_1V in zip(self.rows, logits_BV.split(1), strict=True)]

    def scores(self, tokens_BT, cache):
        """The scores after these tokens, as `generate_tokens` has them made."""
        if self.engine and tokens_BT.shape[1] == 1 and len(tokens_BT) <= MOST_ROWS:
            return self.engine.step(tokens_BT[:, 0], cache)
        return prefill(self.model, tokens_BT, cache)

    def leave(self):
        """Let go of the rows that have ended."""
        kept = [place for place, row in enumerate(self.rows) if row.left]
        if kept and len(kept) < len(self.rows):
            self.cache.keep_rows(kept)
        self.rows = [self.rows[place] for place in kept]

    def side_by_side(self, parts):
        """One cache of parts, each a row with its cache and its place in it, with room for what may still come."""
        pads = [0 if cache.left_pad_B is None else int(cache.left_pad_B[place]) for _, cache, place in parts]
        lengths = [cache.length - pad for (_, cache, _), pad in zip(parts, pads, strict=True)]
        longest, room = max(lengths), max(lengths) + max(row.left for row, _, _ in parts)
        pad_B = torch.tensor([longest - length for length in lengths], device=self.device)
        joined = KVCache(self.model.config, len(parts), room, self.dtype, self.device, pad_B if pad_B.any() else None)
        for new, ((_, cache, place), pad) in enumerate(zip(parts, pads, strict=True)):
            joined.keys[:, new, :, pad_B[new]:longest] = cache.keys[:, place, :, pad:cache.length]
            joined.values[:, new, :, pad_B[new]:longest] = cache.values[:, place, :, pad:cache.length]
        joined.length = longest
        return joined

    @property
    def device(self):
        return self.model.tok_embeddings.weight.device

    @property
    def dtype(self):
        return self.model.cache_dtype or self.model.tok_embeddings.weight.dtype

