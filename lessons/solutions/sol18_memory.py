"""Exercise 18, solved: bytes of training, and checkpointing by hand."""
import torch


def training_bytes(n_parameters, n_trained=None):
    """Bytes for weights, gradients, exact copies and Adam's moments."""
    n_trained = n_parameters if n_trained is None else n_trained
    return 2 * n_parameters + (2 + 4 + 4 + 4) * n_trained


class Checkpointed(torch.autograd.Function):
    """Forward without a graph, backward through a second forward."""

    @staticmethod
    def forward(ctx, block, x):
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.block(x)
        torch.autograd.backward(y, gradient)
        return None, x.grad


def checkpointed(block, x):
    """block(x), keeping nothing for backward but x."""
    return Checkpointed.apply(block, x)
