"""Prompt tuning: n input vectors of its own in front of every text (arXiv 2104.08691).

    h = model([P; E]), P of shape (n, D): n D numbers

The vectors read nothing but one another, so each layer's keys and values of them are the same for every text: they are
computed once a batch, and are then a prefix (`prefix_tuning`). A prompt made of words is those words.
"""

from types import SimpleNamespace

import torch
from torch import nn

from minillama.peft.prefix_tuning import VirtualTokens
from minillama.rope import rope_rotations


class SoftPrompt(VirtualTokens):
    """n virtual tokens, given by their input vectors, (n, D) fp32."""

    def __init__(self, start_nD):
        super().__init__()
        self.embedding = nn.Parameter(start_nD)

    def flat(self):
        """(n, D): the vectors that the first layer reads."""
        return self.embedding

    def keys_values(self, model):
        prompt_nD, held = self.flat(), []

        def append(layer, k_1Knd, v_1Knd):
            held.append((k_1Knd, v_1Knd))
            return k_1Knd, v_1Knd

        x_1nD, cache = prompt_nD[None].to(model.tok_embeddings.weight.dtype), SimpleNamespace(append=append)
        rotations = rope_rotations(torch.arange(-len(prompt_nD), 0, device=x_1nD.device), model.frequencies)
        for block in model.layers:
            x_1nD = block(x_1nD, rotations, cache)  # which hands its keys and values to a cache, with their gradient
        return held


def add_prompt(model, n, ids=()):
    """Put n vectors before all that the frozen `model` reads: those of a text's ids, or random ones with the spread of
    the embedding table."""
    table = model.tok_embeddings.weight.detach()
    random_nD = torch.randn(n, table.shape[1], device=table.device) * table.float().std()
    model.requires_grad_(False)
    model.virtual_tokens = SoftPrompt(table[list(ids)].float() if ids else random_nD)
