"""Prefix tuning: n keys and values of its own in front of every layer's text (arXiv 2101.00190).

    attention([P_k; K], [P_v; V]), P_k and P_v of shape (n, K d) in each of L layers: 2 n L K d numbers

With an encoder they come from n rows of width K d through an MLP (section 4.3), which is dropped once it has learned.
The new model is not its base: softmax shares its weight with n more keys, even where they are all zero.
"""

import torch
from torch import nn

from minillama.kv_cache import KVCache
from minillama.rope import apply_rope, rope_rotations


class VirtualTokens(nn.Module):
    """What every text is read behind, though no word of it: keys and values of each layer, the same for every text.

    The text begins at position 0 as ever, and they end at -1: RoPE knows differences of positions alone. So a row's
    padding, its documents and its KV cache are what they are without them. A subclass says what `flat()` is, the
    numbers that are saved, (n, ...), and how `keys_values(model)` makes [(k, v)] of it, (1, K, n, d) for each layer.
    """

    kept = None  # (what it was made of, keys and values): for generation, which asks at every token

    def forward(self, model):
        if torch.is_grad_enabled():
            return self.keys_values(model)
        made_of = [(id(p), p._version, p.dtype, p.device) for p in self.parameters()]
        if self.kept is None or self.kept[0] != made_of:
            self.kept = made_of, self.keys_values(model)
        return self.kept[1]


class Prefix(VirtualTokens):
    """n virtual tokens, given by their keys and values; keys as RoPE leaves them at position 0 of a text that begins at
    n, which is how the peft library counts."""

    def __init__(self, config, n, h=0, device=None):
        super().__init__()
        self.shape = (n, config.n_layers, 2, config.n_kv_heads, config.head_dim)
        narrow = config.n_kv_heads * config.head_dim
        width = 2 * config.n_layers * narrow
        self.embedding = nn.Parameter(torch.randn(n, narrow if h else width))
        self.encoder = nn.Sequential(nn.Linear(narrow, h), nn.Tanh(), nn.Linear(h, width)) if h else nn.Identity()
        self.to(device)

    def flat(self):
        """(n, 2 L K d): keys and values of the first layer, then of the next."""
        return self.encoder(self.embedding)

    def keys_values(self, model):
        places = torch.full(self.shape[:1], -self.shape[0], device=self.embedding.device)
        rotations, layers = rope_rotations(places, model.frequencies), self.flat().view(self.shape).unbind(1)
        pairs = [(apply_rope(both_n2Kd[:, 0], rotations), both_n2Kd[:, 1]) for both_n2Kd in layers]
        return [(k_nKd.transpose(0, 1)[None], v_nKd.transpose(0, 1)[None]) for k_nKd, v_nKd in pairs]


@torch.no_grad()
def prefix_of_text(model, ids):
    """What `Prefix.flat` is to be so that the model goes on as it would behind the text, (n, 2 L K d) fp32."""
    table = model.tok_embeddings.weight
    cache = KVCache(model.config, 1, len(ids), table.dtype, table.device)
    model.hidden_states(torch.tensor([ids], device=table.device), cache)
    both_L2Knd = torch.stack([cache.keys[:, 0], cache.values[:, 0]], 1).float()
    return both_L2Knd.permute(3, 0, 1, 2, 4).flatten(1)


def add_prefix(model, n, h=0, ids=()):
    """Put n random virtual tokens, or those of a text's ids, before all that the frozen `model` reads; h: the width of
    an encoder, 0: none. ValueError for a text beside an encoder, whose output cannot be chosen."""
    if h and ids:
        raise ValueError("a prefix behind an encoder cannot begin as a text: leave one of the two out")
    model.requires_grad_(False)
    tokens = Prefix(model.config, len(ids) or n, h, model.tok_embeddings.weight.device)
    if ids:
        tokens.embedding.data = prefix_of_text(model, list(ids))
    model.virtual_tokens = tokens
