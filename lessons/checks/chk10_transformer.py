"""Checks of exercise 10: counts against the published models, the block against its definition in float64."""

import torch

from minillama.config import ModelConfig, preset
from minillama.course.exercise import Wrong, close

HINTS = {
    "count": (
        "Count one layer first: four matrices in attention, three in the feed-forward layer, two gains.",
        "Outside the layers: two tables, or one if tied, and one gain of the final norm.",
        "With fewer key/value heads, only the key and the value matrix shrink. And the heads' total width need not "
        "be dim: use n_heads * head_dim.",
    ),
    "block": (
        "A sub-layer never replaces the stream: its result is added to it.",
        "The norm acts on what a sub-layer reads, not on the stream itself (pre-norm).",
        "The feed-forward layer reads the stream after attention has been added, and its result is added to that.",
    ),
}


def check_count(learner):
    tiny = ModelConfig(6, 1, 1, 5, head_dim=4, hidden_dim=7)
    tied = ModelConfig(8, 2, 2, 5, tie_embeddings=True)
    cases = [(tiny, 0), (preset("llama_7b"), 1), (preset("llama_65b"), 1), (tied, 1),
             (preset("llama2_70b"), 2), (ModelConfig(30, 3, 4, 11, 2, head_dim=16, hidden_dim=9), 2)]
    for c, hint in cases:
        got = learner.n_parameters(c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_dim,
                                   c.vocab_size, c.tie_embeddings)
        wanted = c.n_parameters()
        if isinstance(got, int) and c is tiny and got + c.dim == wanted:
            raise Wrong(f"{got} is short by {c.dim}, one gain", 1)
        close(f"parameters of {c}", got, wanted, 0.0, hint=hint)


def check_block(learner):
    def linear(seed):
        matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return lambda y: torch.tanh(y @ matrix)

    for shape in ((1, 1, 6), (2, 5, 6)):
        parts = [linear(seed) for seed in range(4)]
        x = torch.randn(shape, dtype=torch.float64)
        kept, (norm, attend, ffn_norm, feed) = x.clone(), parts
        got = learner.block(x, *parts)
        if not torch.equal(x, kept):
            raise Wrong("x was changed in place: make a new tensor instead", 0)
        middle = kept + attend(norm(kept))
        if torch.is_tensor(got) and got.shape == x.shape:
            if torch.allclose(got, middle + feed(ffn_norm(kept))) or torch.allclose(got, kept + feed(ffn_norm(middle))):
                raise Wrong("the feed-forward layer does not start from the stream that attention left", 2)
            post = norm(kept + attend(kept))
            if torch.allclose(got, ffn_norm(post + feed(post))):
                raise Wrong("this is post-norm: the stream itself was normalised", 1)
        close(f"block on x of shape {shape}", got, middle + feed(ffn_norm(middle)), 1e-12, hint=0)


WRONG = [
    ("+ tables + dim", "+ tables", "count", 1),  # the final norm forgotten
    ("(1 if tied else 2)", "2", "count", 1),
    ("2 * dim * head_dim * n_kv_heads", "2 * dim * head_dim * n_heads", "count", 2),
    ("3 * dim * hidden_dim", "2 * dim * hidden_dim", "count", 0),
    ("2 * dim * head_dim * n_heads +", "2 * dim * dim +", "count", 0),
    ("    x = x + attention(attention_norm(x))", "    x = attention(attention_norm(x))", "block", 0),
    ("    x = x + attention(attention_norm(x))\n    return x + feed_forward(ffn_norm(x))",
     "    return x + attention(attention_norm(x)) + feed_forward(ffn_norm(x))", "block", 2),
    ("    x = x + attention(attention_norm(x))\n    return x + feed_forward(ffn_norm(x))",
     "    x = attention_norm(x + attention(x))\n    return ffn_norm(x + feed_forward(x))", "block", 1),
    ("    x = x + attention(attention_norm(x))", "    x += attention(attention_norm(x))", "block", 0),
]
