"""Ladder side tuning: a narrow network beside the frozen one reads its layers and corrects its end (arXiv 2206.06522).

    s_0 = D_0 h_0;  s_l = f_l(g_l s_(l-1) + (1 - g_l) D_l h_l), f(s) = s + SwiGLU(norm(s));  h_L + U s_L to the head

h_l: the base's residual stream after block l; D_l: r x D; g_l in (0, 1) learns; U: D x r, zero at the start, so the new
model is the base, bit for bit. No gradient passes through the base, which keeps nothing for a backward pass but the
h_l: memory is the point. Narrower than the paper's: s has no attention of its own, and sees other tokens through h
alone. A network of its own cannot be merged.
"""

import torch
from torch import nn

from minillama.peft.lora import device_and_dtype_of
from minillama.rms_norm import RMSNorm
from minillama.swiglu import SwiGLU


class Ladder(nn.Module):
    """Stands in the place of a Transformer's final norm; hooks hand it the streams on the way there."""

    def __init__(self, model, r):
        super().__init__()
        D, L, eps, like = model.config.dim, len(model.layers), model.config.norm_eps, device_and_dtype_of(model.norm)
        self.base, self.streams = model.norm, []
        self.down = nn.ModuleList(nn.Linear(D, r, bias=False, **like) for _ in range(L + 1))
        self.steps = nn.ModuleList(nn.Sequential(RMSNorm(r, eps), SwiGLU(r, 4 * r)) for _ in range(L)).to(**like)
        self.gates = nn.Parameter(torch.zeros(L, **like))  # g = sigmoid(0): one half of each
        self.up = nn.Linear(r, D, bias=False, **like)
        nn.init.zeros_(self.up.weight)
        for part in (model.tok_embeddings, *model.layers):
            part.register_forward_hook(self.read)

    def read(self, part, arguments, h_BTD):
        """Keep what the embedding table or a block has put out; the table begins a pass."""
        if isinstance(part, nn.Embedding):
            self.streams.clear()
        self.streams.append(h_BTD)

    def forward(self, h_BTD):
        first, *streams = [down(h.to(down.weight.dtype)) for down, h in zip(self.down, self.streams, strict=True)]
        s_BTr = first
        for gate, stream_BTr, step in zip(self.gates.sigmoid(), streams, self.steps, strict=True):
            s_BTr = gate * s_BTr + (1 - gate) * stream_BTr
            s_BTr = s_BTr + step(s_BTr)
        self.streams.clear()
        return self.base(h_BTD + self.up(s_BTr).to(h_BTD.dtype))


def add_ladder(model, r):
    """Lay a network of width r beside a Transformer, in place; all else is frozen."""
    model.requires_grad_(False)
    model.norm = Ladder(model, r)
