"""Adapters: small networks of two layers inside a frozen model, in series (arXiv 1902.00751) or parallel (2110.04366).

    a(x) = W_up relu(W_down x + b) + c        (W_down: m x D, W_up: D x m; 2 m D + D + m numbers)
    series: y + a(y) where y leaves attention and feed-forward: two in each block
    parallel: f(x) + a(x) beside the feed-forward layer f, x behind its norm: one in each block

W_up and c start at zero, so the new model is the base, bit for bit. A nonlinearity stands between the two matrices, so
no single weight does the same, and an adapter cannot be merged.
"""

from torch import nn

from minillama.peft.lora import device_and_dtype_of
from minillama.quant.quantized_linear import replace_module


class WithBottleneck(nn.Module):
    """A frozen layer, and the change that a bottleneck of width m makes of its output, or of its input."""

    def __init__(self, base, width, m, parallel):
        super().__init__()
        self.base, self.parallel, like = base, parallel, device_and_dtype_of(base.w1 if parallel else base)
        self.down, self.up = nn.Linear(width, m, **like), nn.Linear(m, width, **like)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        y = self.base(x)
        read = (x if self.parallel else y).to(self.down.weight.dtype)
        return y + self.up(self.down(read).relu()).to(y.dtype)


def add_adapters(model, m, parallel=False):
    """Put adapters of width m into every block of a Transformer, in place; all else is frozen."""
    model.requires_grad_(False)
    places = ("feed_forward",) if parallel else ("attention.wo", "feed_forward.w2")
    for path in [f"layers.{layer}.{place}" for layer in range(len(model.layers)) for place in places]:
        replace_module(model, path, WithBottleneck(model.get_submodule(path), model.config.dim, m, parallel))
