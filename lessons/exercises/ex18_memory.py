"""Exercise 18: bytes of training, and checkpointing by hand (lesson 18)."""


def training_bytes(n_parameters, n_trained=None):
    """Bytes for weights, gradients, exact copies and Adam's moments: an int. Activations are not counted.

    Every weight is held in bf16. Each *trained* one (all of them by default) has besides a bf16 gradient, an fp32 copy
    and two fp32 moments.
    """
    raise NotImplementedError("your code here")


def checkpointed(block, x):
    """block(x), keeping nothing for backward but x: the inside is computed again when backward comes by.

    block: nn.Module, tensor (B, D) -> tensor; x: requires a gradient. After `checkpointed(block, x).sum().backward()`
    x and the parameters of the block have the same gradients as without checkpointing. Use torch.autograd.Function,
    not torch.utils.checkpoint.
    """
    raise NotImplementedError("your code here")
