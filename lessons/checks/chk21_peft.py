"""Checks of exercise 21: against the library's own methods, on odd sizes."""
import torch
from torch.nn.functional import linear

from minillama.config import ModelConfig
from minillama.course.exercise import close
from minillama.peft.methods import add_method
from minillama.transformer import Transformer

HINTS = {
    "prefix_attention": ("Keys of the prefix stand before the text's: one softmax over n + T scores, not two.",
                         "Divide the scores by sqrt(d), the prefix's too.",
                         "The causal mask is for the text alone: query t sees all n of the prefix, and the text up to "
                         "t itself."),
    "adapter": ("Its input is h, and its output is added to h.",
                "Between the two matrices stands a relu; b goes in before it, c after.",
                "Compute the change in float32, and bring it to the dtype of h before the sum."),
    "nearest_words": ("Distances of each soft vector to each row of the table: (n, V); then the least of each row.",
                      "Euclidean distance, not the largest product: a long row is not a near one."),
    "numbers_trained": ("A prompt has n vectors of width dim; a prefix has n keys and n values in each layer.",
                        "An adapter has two matrices, a bias of width m and one of width D, and there are two a layer.",
                        "Another name is an error: raise ValueError."),
}


def wanted_attention(q, k, v, prefix_k, prefix_v):
    """One query after another, from the definition."""
    rows = []
    for t in range(len(q)):
        keys, values = torch.cat([prefix_k, k[:t + 1]]), torch.cat([prefix_v, v[:t + 1]])
        rows.append((keys @ q[t] / q.shape[1] ** 0.5).softmax(0) @ values)
    return torch.stack(rows)


def check_prefix_attention(learner):
    for hint, (T, n, d) in enumerate(((1, 1, 1), (1, 6, 3), (5, 3, 4))):
        generator = torch.Generator().manual_seed(d)
        q, k, v, prefix_k, prefix_v = (torch.randn(rows, d, generator=generator, dtype=torch.float64)
                                       for rows in (T, T, T, n, n))
        close(f"T {T}, prefix {n}, d {d}", learner.prefix_attention(q, k, v, prefix_k, prefix_v),
              wanted_attention(q, k, v, prefix_k, prefix_v), 1e-9, hint)


def check_adapter(learner):
    for shape, m in (((1,), 1), ((3, 5), 2), ((2, 3, 8), 7)):
        generator, D = torch.Generator().manual_seed(m), shape[-1]
        h, down, b, up, c = (torch.randn(size, generator=generator) for size in (shape, (m, D), (m,), (D, m), (D,)))
        close(f"h {shape} with up and c of zero", learner.adapter(h, down, b, 0 * up, 0 * c), h, 0, 0)
        for shift in (1.0, -1.0):  # on both sides of the relu
            close(f"h {shape}, m {m}", learner.adapter(h, down, b + shift, up, c),
                  h + linear(linear(h, down, b + shift).clamp(min=0), up, c), 1e-4, 1)
        close(f"h {shape} in bfloat16", learner.adapter(h.bfloat16(), down, b, 0 * up, 0 * c), h.bfloat16(), 0, 2)


def check_nearest_words(learner):
    close("rows of equal length", learner.nearest_words(torch.eye(4)[[2, 0, 3]] + 0.1, torch.eye(4)),
          torch.tensor([2, 0, 3]), 0, 0)
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0], [1.0, 0.0]])
    close("rows of unequal length", learner.nearest_words(torch.tensor([[0.9, 0.2], [0.1, 0.3], [6.0, 5.0]]), table),
          torch.tensor([1, 0, 2]), 0, 1)


def check_numbers_trained(learner):
    config = ModelConfig(dim=24, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=11, hidden_dim=40)
    for name, hint in (("prompt", 0), ("prefix", 0), ("adapter", 1)):
        for size in (1, 5):
            model = Transformer(config)
            add_method(model, name, size)
            wanted = sum(p.numel() for p in model.parameters() if p.requires_grad)
            close(f"{name} of {size}", learner.numbers_trained(name, 3, 24, 12, size), wanted, 0, hint)
    try:
        learner.numbers_trained("ladder", 3, 24, 12, 5)
    except ValueError:
        return
    close("an error for another name", 0, 1, 0, 2)


WRONG = [
    ("scores.softmax(-1) @ torch.cat([prefix_v, v])",
     "scores[:, :n].softmax(-1) @ prefix_v + scores[:, n:].softmax(-1) @ v", "prefix_attention", 0),
    (" / q.shape[1] ** 0.5", "", "prefix_attention", 1),
    (".triu(1)", ".triu(2)", "prefix_attention", 2),
    ("return h + (inner", "return (inner", "adapter", 0),
    (".relu()", "", "adapter", 1),
    (".to(h.dtype)", "", "adapter", 2),
    (".square().sum(-1).argmin(1)", ".square().sum(-1).argmax(1)", "nearest_words", 0),
    ("(soft[:, None] - table[None]).square().sum(-1).argmin(1)", "(soft @ table.T).argmax(1)", "nearest_words", 1),
    ("2 * size * n_layers * kv_dim", "size * n_layers * kv_dim", "numbers_trained", 0),
    ("2 * size * dim + dim + size", "2 * size * dim", "numbers_trained", 1),
    ("raise ValueError(f\"{name!r} is none of prompt, prefix, adapter\")", "return 0", "numbers_trained", 2),
    ("@ up.T + c)", "@ up.T)", "adapter", 1),
]
