"""Checks of exercise 18: the count, equal gradients, and what was really kept."""
import torch
from torch import nn

from minillama.course.exercise import Wrong, close

HINTS = {
    "bytes": ("bf16 takes 2 bytes, fp32 takes 4.",
              "2 for each weight; 2 + 4 + 4 + 4 more for each weight that is trained."),
    "output": ("The output is what the block gives for x; the block itself stays as it is.",),
    "gradients": ("backward gets the gradient of the output and has to start from it, not from ones.",
                  "Compute the block again on a detached x that requires a gradient, with gradients enabled.",
                  "torch.autograd.backward fills the gradients of the parameters; that of x is what you return."),
    "kept": ("Only x may be kept: run the block without recording in the forward pass.",
             "The block runs twice in all: once forward, once when backward comes by."),
}


class Counted(nn.Module):
    """Two layers that count how often they run."""

    def __init__(self, dim=5):
        super().__init__()
        generator = torch.Generator().manual_seed(dim)
        self.up, self.down = (nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
                              for shape in ((dim, 3 * dim), (3 * dim, dim)))
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return x + torch.tanh(x @ self.up).square() @ self.down


def case(B=4, dim=5):
    x = torch.randn(B, dim, generator=torch.Generator().manual_seed(B), dtype=torch.float64)
    return Counted(dim), x.requires_grad_()


def check_bytes(learner):
    close("training_bytes(1000)", learner.training_bytes(1000), 16000, 0, 1)
    close("training_bytes of LLaMA 7B", learner.training_bytes(6738415616), 107814649856, 0, 0)
    close("training_bytes(1000, n_trained=10)", learner.training_bytes(1000, 10), 2140, 0, 1)
    close("training_bytes(1000, n_trained=0)", learner.training_bytes(1000, 0), 2000, 0, 1)


def check_output(learner):
    for B, dim in ((1, 1), (4, 5), (3, 2)):
        block, x = case(B, dim)
        got = learner.checkpointed(block, x)
        close(f"the output for x of {(B, dim)}", got, block(x), 1e-12, 0)


def check_gradients(learner):
    for B, dim in ((1, 1), (4, 5), (3, 2)):
        block, x = case(B, dim)
        weight = torch.arange(1.0, 1 + B * dim, dtype=torch.float64).view(B, dim)
        (block(x) * weight).sum().backward()
        wanted = [tensor.grad.clone() for tensor in (x, block.up, block.down)]
        block, x = case(B, dim)
        got = learner.checkpointed(block, x)
        if not got.requires_grad:
            raise Wrong("the output requires no gradient: nothing can be learned through it", 1)
        (got * weight).sum().backward()
        for name, tensor, gradient in zip(("x", "up", "down"), (x, block.up, block.down), wanted, strict=True):
            if tensor.grad is None:
                raise Wrong(f"{name} got no gradient", 2)
            close(f"the gradient of {name}", tensor.grad, gradient, 1e-10, 0)


def check_kept(learner):
    block, x = case()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        got = learner.checkpointed(block, x)
    if any(tensor.data_ptr() != x.data_ptr() for tensor in kept):
        raise Wrong(f"{len(kept)} tensors are kept for backward, wanted x alone", 0)
    got.sum().backward()
    close("how often the block runs", block.runs, 2, 0, 1)


WRONG = [
    ("(2 + 4 + 4 + 4) * n_trained", "(4 + 4 + 4) * n_trained", "bytes", 1),
    ("return 2 * n_parameters", "return 2 * n_trained", "bytes", 1),
    ("            return block(x)", "            return block(x) + 1", "output", 0),
    ("torch.autograd.backward(y, gradient)", "torch.autograd.backward(y, torch.ones_like(y))", "gradients", 0),
    ("return None, x.grad", "return None, None", "gradients", 2),
    ("return Checkpointed.apply(block, x)", "return block(x)", "kept", 0),
    ("    return Checkpointed.apply(block, x)",
     "    with torch.no_grad():\n        block(x)\n    return Checkpointed.apply(block, x)", "kept", 1),
    ("(2 + 4 + 4 + 4) * n_trained", "(2 + 4 + 4 + 4) * n_parameters", "bytes", 1),
    ("n_parameters if n_trained is None else n_trained", "n_trained or n_parameters", "bytes", 1),
    ("ctx.save_for_backward(x)", "ctx.save_for_backward(x, block(x))", "kept", 0),
    ("        ctx.block = block\n", "        ctx.block = block\n        block(x)\n", "kept", 1),
    ("torch.autograd.backward(y, gradient)", "torch.autograd.backward(y, 2 * gradient)", "gradients", 0),
]
