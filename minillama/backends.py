"""Which code computes a model's attention, RoPE, norms, gates and quantized products: plain PyTorch, its fused
attention, or a kernel."""

from functools import partial

import torch

from minillama import kernels
from minillama.attention import attention, torch_attention
from minillama.cuda_attention import CudaAttention, forward_by_kernels
from minillama.quant.nf4 import NF4Linear
from minillama.quant.quantized_linear import QuantizedLinear
from minillama.rms_norm import RMSNorm, rms_norm
from minillama.rope import apply_rope_qk
from minillama.swiglu import SwiGLU

BACKENDS = ("reference", "torch", *kernels.LIBRARIES)  # what --kernels takes


def use_kernels(model, backend, activations="fp32"):
    """Let every layer of a `Transformer` attend, turn and multiply in NF4 and int8 by `backend`, and return the model.

    "reference"     `attention`, `apply_rope_qk`, `NF4Tensor.product` and `Int8Tensor.product`, written out
    "torch"         PyTorch's fused attention, the same meaning in less memory and time; the others as above
    "cpu"           all by hand-written kernels for CPUs, norms, gates and trained losses too, on CPU tensors in fp32,
                    bf16 or fp16, but attention of a single query, which is PyTorch's, and linear layers of many rows,
                    which are oneDNN's (csrc/bind_linear.h)
    "simt", "cuda"  all by the CUDA kernels, on the emulator (slow, CPU tensors) or on a GPU (CUDA tensors), but int8
                    products, which stay the reference's; a token behind a cache in one launch (cuda_attention.py)

    activations: "int8" (with "cpu" alone) rounds those that layers in NF4 or GGUF's blocks multiply: faster, for
    generation only. Else the same losses and the same text up to rounding. ValueError for an unknown name,
    RuntimeError for what is not built here.
    """
    attend, rotate = choose_operators(backend)
    gate = kernels.operator_of("rope", "cpu", torch.empty(0), "silu_product") if backend == "cpu" else SwiGLU.multiply
    check_activations(model, backend, activations)
    for block in model.layers:
        block.attention.attend, block.attention.rotate = attend, rotate
        block.attention.__dict__.pop("forward", None)
        if isinstance(attend, CudaAttention):
            block.attention.forward = partial(forward_by_kernels, block.attention)  # in place of the class's
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.backend, layer.activations = backend if backend in layer.backends else "reference", activations
        elif type(layer) is torch.nn.Linear and layer.bias is None:
            layer.multiply = torch.ops.minillama.linear if backend == "cpu" else torch.nn.functional.linear
            layer.__dict__["forward"] = partial(forward_linear, layer)  # in place of the class's
        elif isinstance(layer, RMSNorm):
            layer.normalize = torch.ops.minillama.normalize if backend == "cpu" else rms_norm
        elif isinstance(layer, SwiGLU):
            layer.multiply = gate
    return model


def check_activations(model, backend, activations):
    """ValueError where the layers in NF4 cannot multiply activations rounded so."""
    if activations not in ("fp32", "int8"):
        raise ValueError(f"activations {activations!r} are not known: choose from fp32, int8")
    if activations == "int8" and backend != "cpu":
        raise ValueError(f"activations int8 need kernels 'cpu', given {backend!r}: choose those, or activations fp32")
    for name, layer in model.named_modules():
        if activations == "int8" and isinstance(layer, NF4Linear) and (layer.in_features % 64 or layer.block_size % 64):
            raise ValueError(f"{name} has {layer.in_features} columns in blocks of {layer.block_size}, and activations "
                             "int8 need multiples of 64: use activations fp32")


def choose_operators(backend):
    """(attention, RoPE) of that backend, called like `attention` and `apply_rope_qk`."""
    if backend in ("reference", "torch"):
        return (attention if backend == "reference" else torch_attention), apply_rope_qk
    if backend not in BACKENDS:
        raise ValueError(f"kernels {backend!r} are not known: choose from {', '.join(BACKENDS)}")
    kernels.require(backend)
    attend = attention_on_cpu if backend == "cpu" else CudaAttention(backend)
    return attend, partial(kernels.fused_rope_qk, backend=backend)


def forward_linear(layer, x):
    """x W^T of a linear layer, by the operator that it was given."""
    return layer.multiply(x, layer.weight)


def attention_on_cpu(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None):
    """`attention` by the kernel for CPUs; a single query, as in decoding, is left to PyTorch's fused attention."""
    if q_BHTd.shape[2] == 1:
        return torch_attention(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS)
    return kernels.flash_attention(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS, backend="cpu")


def backend_of(model):
    """The name of what `use_kernels` has chosen for a model; None for a module without attention."""
    part = next((part for part in model.modules() if hasattr(part, "attend")), None)
    if part is None:
        return None
    plain = "reference" if part.attend is attention else "torch"
    return part.rotate.keywords["backend"] if isinstance(part.rotate, partial) else plain
