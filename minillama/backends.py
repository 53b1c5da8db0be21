"""Which code computes a model's attention, RoPE and NF4 products: plain PyTorch, its fused attention, or a kernel."""

from functools import partial

from minillama import kernels
from minillama.attention import attention, torch_attention
from minillama.quant.nf4 import NF4Linear
from minillama.rope import apply_rope_qk

BACKENDS = ("reference", "torch", *kernels.LIBRARIES)  # what --kernels takes


def use_kernels(model, backend):
    """Let every layer of a `Transformer` attend, turn and multiply in NF4 by `backend`, and return the model.

    "reference"     `attention`, `apply_rope_qk` and `NF4Tensor.product`, written out
    "torch"         PyTorch's fused attention, the same meaning in less memory and time; the others as above
    "cpu"           PyTorch's fused attention; RoPE of q and k, and NF4 products, by kernels for CPUs
    "simt", "cuda"  all by the hand-written kernels, on the emulator (slow, CPU tensors) or on a GPU (CUDA tensors)

    Same losses and same text up to rounding. The kernels of the last two know no mask but the causal one. ValueError
    for an unknown name, RuntimeError for what is not built here.
    """
    attend, rotate = functions(backend)
    for block in model.layers:
        block.attention.attend, block.attention.rotate = attend, rotate
    for layer in model.modules():
        if isinstance(layer, NF4Linear):
            layer.backend = backend if backend in kernels.KERNELS["nf4_matmul"] else "reference"
    return model


def functions(backend):
    """(attention, RoPE) of that backend, called like `attention` and `apply_rope_qk`."""
    if backend in ("reference", "torch"):
        return (attention if backend == "reference" else torch_attention), apply_rope_qk
    if backend not in BACKENDS:
        raise ValueError(f"kernels {backend!r} are not known: choose from {', '.join(BACKENDS)}")
    kernels.require(backend)
    flash = backend in kernels.KERNELS["flash_attention"]
    return (partial(kernels.flash_attention, backend=backend) if flash else torch_attention,
            partial(kernels.fused_rope_qk, backend=backend))


def backend_of(model):
    """The name of what `use_kernels` has chosen for a model; None for a module without attention."""
    part = next((part for part in model.modules() if hasattr(part, "attend")), None)
    if part is None:
        return None
    plain = "reference" if part.attend is attention else "torch"
    return part.rotate.keywords["backend"] if isinstance(part.rotate, partial) else plain
