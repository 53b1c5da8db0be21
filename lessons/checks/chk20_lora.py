"""Checks of exercise 20: the adapter against the library's layer, merging against the layer's outputs."""
import torch
from torch import nn

from minillama.course.exercise import Wrong, close
from minillama.peft.lora import LoRAConfig, LoRALinear

HINTS = {
    "forward": ("x comes as rows, so each product is with a transposed matrix: first A, then B.",
                "The adapter is scaled by alpha / R, and R is the number of rows of A."),
    "merge": ("The change of the weight is (alpha / R) B A: out x R times R x in.",
              "W0 must stay as it was: make a new tensor, no in-place addition.",
              "The result has the dtype of W0, but the sum is taken in the dtype of A and B and rounded once."),
    "unmerge": ("Take the same change away again.", "W0 = W - (alpha / R) B A",
                "The result has the dtype of W, but the difference is taken in the dtype of A and B and rounded once."),
    "trained_numbers": ("Count the numbers in A and in B.", "R x in for A, and out x R for B"),
}
SHAPES = [(1, 1, 1), (3, 5, 2), (5, 3, 1), (24, 40, 7)]  # out, in, rank


def parts(n_out, n_in, rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n_out + n_in)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in
            ((n_out, n_in), (rank, n_in), (n_out, rank))]


def layer_of(W0, A, B, alpha):
    linear = nn.Linear(*reversed(W0.shape), bias=False)
    linear.weight = nn.Parameter(W0)
    layer = LoRALinear(linear, LoRAConfig(rank=len(A), alpha=alpha))
    layer.A.data, layer.B.data = A, B
    return layer.requires_grad_(False)


def check_forward(learner):
    for shape in SHAPES:
        W0, A, B = parts(*shape)
        for batch in ((), (1,), (2, 3)):
            x = torch.randn(*batch, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            got, bare = learner.forward(x, W0, A, B, 3.0), learner.forward(x, W0, A, 0 * B, 3.0)
            close(f"the base alone (B = 0), weight {shape[:2]}, x {tuple(x.shape)}", bare, x @ W0.T, 1e-12, 0)
            close(f"h, weight {shape[:2]}, rank {shape[2]}, x {tuple(x.shape)}", got, layer_of(W0, A, B, 3.0)(x),
                  1e-11, 1)


def check_merge(learner):
    for shape in SHAPES:
        W0, A, B = parts(*shape)
        before = W0.clone()
        got = learner.merge(W0, A, B, 3.0)
        if not torch.equal(W0, before):
            raise Wrong("merge changed the W0 it was given", 1)
        close(f"merged weight {shape[:2]} of rank {shape[2]}", got, W0 + layer_of(W0, A, B, 3.0).product(),
              1e-11, 0)
    W0, A, B = parts(24, 40, 7, torch.float32)
    wanted = (W0.half().float() + 3.0 / 7 * (B @ A)).half()
    close("merged fp16 weight", learner.merge(W0.half(), A, B, 3.0), wanted, 1e-6, 2)


def check_unmerge(learner):
    for shape in SHAPES:
        W0, A, B = parts(*shape)
        W = W0 + 3.0 / shape[2] * (B @ A)
        close(f"unmerged weight {shape[:2]} of rank {shape[2]}", learner.unmerge(W, A, B, 3.0), W0, 1e-11, 1)
    W, A, B = parts(24, 40, 7, torch.float32)
    wanted = (W.half().float() - 3.0 / 7 * (B @ A)).half()
    close("unmerged fp16 weight", learner.unmerge(W.half(), A, B, 3.0), wanted, 1e-6, 2)


def check_trained_numbers(learner):
    for shape in SHAPES:
        close(f"numbers for {shape[:2]}, rank {shape[2]}", learner.trained_numbers(*shape),
              shape[2] * shape[1] + shape[0] * shape[2], 0, 0)


WRONG = [
    ("(alpha / len(A)) * ((x @ A.T) @ B.T)", "alpha * ((x @ A.T) @ B.T)", "forward", 1),
    ("x @ W0.T + (", "(", "forward", 0),
    ("change = (alpha / len(A))", "change = (alpha / len(B))", "merge", 0),
    ("return (W0.to(change.dtype) + change).to(W0.dtype)", "return W0.add_(change)", "merge", 1),
    ("return (W0.to(change.dtype) + change).to(W0.dtype)", "return W0 + change.to(W0.dtype)", "merge", 2),
    ("return merge(W, A, -B, alpha)", "return merge(W, -A, -B, alpha)", "unmerge", 1),
    ("return merge(W, A, -B, alpha)", "return W - ((alpha / len(A)) * (B @ A)).to(W.dtype)", "unmerge", 2),
    ("rank * (n_out + n_in)", "rank * n_out * n_in", "trained_numbers", 0),
    ("(x @ A.T) @ B.T", "(x @ B.T) @ A.T", "forward", 0),
    ("change = (alpha / len(A))", "change = alpha", "merge", 0),
    ("return merge(W, A, -B, alpha)", "return merge(W, A, B, alpha)", "unmerge", 1),
    ("rank * (n_out + n_in)", "n_out + n_in", "trained_numbers", 0),
]
