"""Checks of exercise 37: bytes counted on a model's own tensors, groups against one head after another, and a product
whose codes and activations are whole numbers from the start."""

import torch

from minillama.config import ModelConfig
from minillama.course.exercise import close
from minillama.transformer import Transformer

HINTS = {
    "bytes": (
        "wq and wo have H heads, wk and wv have K; the feed-forward layer has three matrices; the head is there once.",
        "The cache holds keys and values, of K heads, in each layer.",
        "A number of the cache need not have as many bytes as a weight.",
    ),
    "grouped": (
        "Neighbouring query heads share a head of keys: heads 0 to H / K - 1 have the first one.",
        "Divide the scores by the square root of d, and take the softmax over the tokens.",
        "The rows come in the order of the query heads.",
    ),
    "integer": (
        "Each block has a scale of its own, in the weights and in x.",
        "The largest size of a block becomes 127.",
        "Round to the nearest whole number.",
        "A block of zeros has no largest size to divide by.",
    ),
}


def _counted(L, D, H, K, d, F, V, S, w, b):
    with torch.device("meta"):
        model = Transformer(ModelConfig(D, L, H, V, n_kv_heads=K, head_dim=d, hidden_dim=F, max_seq_len=8))
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    return w * (sum(weight.numel() for weight in matrices) - D * V) + b * L * 2 * K * S * d


def check_bytes(learner):
    for *case, hint in ((1, 8, 2, 1, 4, 3, 5, 0, 1, 1, 0), (3, 6, 1, 1, 6, 7, 2, 0, 2, 2, 0),
                        (2, 8, 4, 2, 2, 3, 5, 9, 1, 1, 1), (2, 8, 4, 2, 2, 3, 5, 9, 4, 2, 2),
                        (22, 2048, 32, 4, 64, 5632, 32000, 100, 0.5, 4, 2)):
        close(f"token_bytes{tuple(case)}", learner.token_bytes(*case), _counted(*case), 1e-9, hint=hint)


def check_grouped(learner):
    torch.manual_seed(37)
    for H, K, S, d, hint in ((4, 4, 3, 2, 1), (4, 1, 5, 6, 1), (6, 2, 7, 4, 0), (6, 3, 1, 4, 2)):
        q, keys, values = torch.randn(H, d), torch.randn(K, S, d), torch.randn(K, S, d)
        wanted = torch.stack([((keys[h * K // H] @ q[h]) / d**0.5).softmax(0) @ values[h * K // H] for h in range(H)])
        close(f"grouped_attention with H={H}, K={K}, S={S}", learner.grouped_attention(q, keys, values), wanted, 1e-5,
              hint=hint)


def check_integer(learner):
    x, ones = torch.full((1, 64), 0.4), torch.ones(1, 64)
    x[0, 0] = 127
    close("integer_product, 63 times 0.4", learner.integer_product(ones, torch.ones(1), x), 127.0, 1e-6, hint=1)
    x[0, 1:] = 0.6
    close("integer_product, 63 times 0.6", learner.integer_product(ones, torch.ones(1), x), 127.0 + 63, 1e-6, hint=2)
    torch.manual_seed(37)
    codes, whole = (torch.randint(-112, 113, (5, 64)), torch.randint(-126, 127, (5, 64)))
    whole[:, 7] = torch.tensor([127, -127, 127, -127, 127])
    for scales, of_x, hint in ((torch.ones(5), torch.ones(5), 1), (torch.arange(1.0, 6), torch.ones(5), 0),
                               (torch.arange(1.0, 6), torch.tensor([0.5, 3, 0.25, 8, 1]), 0)):
        x = whole * of_x[:, None]
        products = codes.double() * scales[:, None] * x
        close("integer_product of whole numbers", learner.integer_product(codes, scales, x), products.sum().item(),
              1e-6 * products.abs().sum().item(), hint=hint)
    zeros = torch.zeros(1, 64)
    close("integer_product of zeros", learner.integer_product(ones, torch.ones(1), zeros), 0.0, 1e-9, hint=3)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("2 * D * K * d", "2 * D * H * d", "bytes", 0),
    ("3 * D * F", "2 * D * F", "bytes", 0),
    (") + D * V", ")", "bytes", 0),
    ("2 * L * K * d * S", "L * K * d * S", "bytes", 1),
    ("2 * L * K * d * S", "2 * L * H * d * S", "bytes", 1),
    ("number_bytes * 2", "weight_bytes * 2", "bytes", 2),
    ("q.view(K, H // K, d)", "q.view(H // K, K, d).transpose(0, 1)", "grouped", 0),
    (" / d**0.5", " / d", "grouped", 1),
    ("softmax(-1)", "softmax(0)", "grouped", 1),
    ("sums * scales * largest", "sums * scales * largest.max()", "integer", 0),
    ("largest[:, None] * 127)", "largest[:, None] * 128)", "integer", 1),
    (".round()", ".trunc()", "integer", 2),
    (".clamp(min=1e-30)", "", "integer", 3),
]
