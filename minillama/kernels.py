"""The one door to the compiled kernels. Plain PyTorch is the reference and the default; a kernel is asked for by name.

    built_backends()                          what there is here: ("reference",) or ("reference", "cpu", "simt")
    fused_rope(x_BTHd, rotations)             minillama.rope in one pass, with its gradient
    fused_rope_qk(q, k, rotations)            queries and keys in one launch; in place or into a cache if asked to
    nf4_matmul(x, stored, "cpu")              x W^T from the stored bits of an NF4Tensor, with the gradient of x
    flash_attention(q, k, v, backend="cpu")   minillama.attention without the T x S matrix, with its gradients
    load_source("lab", ["cpu/rope.cpp", ...]) compile a file of csrc/, or your own, now
    profile(), CudaSource("mine.cu")          what emulated kernels load, store and do wrong, line by line

Backends: "cpu" is fast code for CPUs; "simt" is the CUDA code run by an emulator, slow, to test and to learn;
"cuda" is the same code on a GPU, which takes CUDA tensors.
Nothing falls back in silence: a backend that is not built raises an error that says how to build it.
"""

import contextlib
import functools
import importlib
import re

import torch

from minillama.simt import emulator_build
from minillama.simt.compiler import NotBuilt
from minillama.simt.emulator_build import CudaSource, load_source, source_folder
from minillama.simt.profile_report import Profile

__all__ = ["CudaSource", "built_backends", "contracted", "flash_attention", "fused_rope", "fused_rope_qk",
           "load_source", "nf4_matmul", "profile", "require", "schedule", "source_folder"]
BUILD = "python setup.py build_ext --inplace"
BUILD_CUDA = f"MINILLAMA_CUDA=1 {BUILD}"  # needs nvcc, no GPU
LIBRARIES = {"cpu": "minillama", "simt": "minillama_simt", "cuda": "minillama"}  # backend -> namespace of its operators
DEVICES = {"cpu": "cpu", "simt": "cpu", "cuda": "cuda"}  # backend -> where its tensors live
KERNELS = {"rope": ("cpu", "simt", "cuda"), "nf4_matmul": ("cpu", "simt", "cuda"),  # operator -> backends
           "int8_matmul": ("cpu",), "nf4_quantize": ("cpu",), "flash_attention": ("cpu", "simt", "cuda")}
_known: dict = {}  # what PyTorch said of an operator and a device: it takes 20 microseconds to answer


def built_backends():
    """Names of the backends that can be asked for: "reference" always, the others where they were compiled."""
    return "reference", *(backend for backend in LIBRARIES if not _load_operators() and _has_kernel("rope", backend))


def _has_kernel(name, backend):
    of = f"{LIBRARIES[backend]}::{name}", DEVICES[backend].upper()
    if of not in _known:
        _known[of] = torch._C._dispatch_has_kernel(of[0]) and torch._C._dispatch_has_kernel_for_dispatch_key(*of)
    return _known[of]


# torch.compile is not to trace the loading of a library. (Its decorator for this loads it now: longer than PyTorch.)
built_backends._dynamo_marked_constant = _has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require(backend):
    """Return quietly if `backend` is built here; otherwise raise and say how to build it."""
    if backend not in ("reference", *LIBRARIES):
        raise ValueError(f"backend {backend!r} is not known: choose 'reference', {', '.join(map(repr, LIBRARIES))}")
    if backend not in built_backends():
        tool, build = ("nvcc", BUILD_CUDA) if backend == "cuda" else ("a C++ compiler", BUILD)
        reason = _load_operators() or _load_library("minillama._cuda")
        raise NotBuilt(f"backend {backend!r} is not built here ({reason}). In the checkout, with {tool}: {build}")


def operator_of(name, backend, x, variant=None):
    """The operator of that backend (or a `variant` of it) for a tensor like x; ValueError if x lives elsewhere."""
    require(backend)
    if backend not in KERNELS[name]:
        raise ValueError(f"{name} has no kernel for backend {backend!r}: choose from {', '.join(KERNELS[name])}")
    if x.device.type != DEVICES[backend]:
        raise ValueError(f"x is on {x.device}, and backend {backend!r} takes tensors on {DEVICES[backend]}: move it "
                         f"with .to({DEVICES[backend]!r}), or choose another backend")
    if not _has_kernel(variant or name, backend):
        raise RuntimeError(f"the compiled kernels of backend {backend!r} are older than the sources: they lack "
                           f"{variant or name}. In the checkout: {BUILD_CUDA if backend == 'cuda' else BUILD}")
    return getattr(getattr(torch.ops, LIBRARIES[backend]), variant or name)


@functools.cache
def _load_library(library):
    """Load a compiled library of operators; the reason as text if that is not possible."""
    try:
        importlib.import_module(library)
    except ModuleNotFoundError:
        return f"{library} was never compiled"
    except ImportError as error:  # most often: compiled for another PyTorch
        return f"{library} does not load: {error}"
    return None


@functools.cache
def _load_operators():
    """Load the operators and register what they need in Python; the reason as text if that is not possible."""
    if reason := _load_library("minillama._ops"):
        return reason
    _load_library("minillama._cuda")  # those for GPUs
    for library in dict.fromkeys(LIBRARIES.values()):
        operators = getattr(torch.ops, library)
        for name, fake, remember, backward in (
            ("rope", lambda *x: tuple(t.new_empty(t.shape) for t in x[:2]), _rope_setup_context, _rope_backward),
            *((name, lambda *arguments: None, None, None) for name in ("rope_", "rope_into")),
            ("nf4_matmul", _nf4_fake, _nf4_remember, _nf4_backward),
            *((name, _nf4_fake, None, None) for name in ("nf4_matmul_backward", "nf4_matmul_int8")),
            ("int8_matmul", lambda x, codes, *rest: x.new_empty((*x.shape[:-1], len(codes))), None, None),
            ("flash_attention", _flash_fake, _flash_remember, _flash_backward),
            ("flash_attention_backward", lambda _, __, *x: tuple(t.new_empty(t.shape) for t in x[:3]), None, None),
            *((name, lambda q, *rest: q.new_empty(q.shape), None, None) for name in ("flash_decoding",
                                                                                   "flash_decoding_append")),
        ):
            if not hasattr(operators, name):
                continue  # compiled before there was one: `operator_of` says so when it is asked for
            torch.library.register_fake(f"{library}::{name}", fake)
            if backward:
                backward = functools.partial(backward, operators)
                torch.library.register_autograd(f"{library}::{name}", backward, setup_context=remember)
    return None


@contextlib.contextmanager
def schedule(order):
    """Within it, emulated threads run in this order: "forward", "reverse" or "shuffle:SEED"; afterwards as before."""
    if not re.fullmatch(r"forward|reverse|shuffle:\d+", order):
        raise ValueError(f"schedule {order!r} is not known: use 'forward', 'reverse' or 'shuffle:SEED'")
    before = emulator_build.order
    _set_schedule(order)
    try:
        yield
    finally:
        _set_schedule(before)


def _set_schedule(order):
    emulator_build.order = order
    if "simt" in built_backends():
        torch.ops.minillama_simt.set_schedule(order)


@contextlib.contextmanager
def profile(*sources):
    """Count and check every access of the emulated kernels that run in the block: `with profile() as p: ...`.

    Without arguments these are minillama's own, asked for with backend="simt"; otherwise those of the CudaSources
    given. g++ takes some 20 s for them, once, and they run about 50 times slower. One within another counts for both.
    `p` is a `minillama.simt.profile_report.Profile`; what a kernel is stopped for is raised, and is in p.findings too.
    """
    report, before, started = Profile(), [source.profiled for source in sources], []
    try:
        for source in sources:
            source.profiled = True
        own = [] if sources else [_kernels_compiled(profiled=True, contracted=False)]
        for library in own or [source.library() for source in sources]:
            library.simt_start()
            started.append(library)
        with emulator_build.kernels_of(own[0]) if own else contextlib.nullcontext():
            yield report
    finally:
        for source, profiled in zip(sources, before, strict=True):
            source.profiled = profiled
        for library in started:
            library.simt_stop()
            report.add(library.simt_json().decode())


def contracted():
    """Within it, backend "simt" fuses a * b + c where nvcc does: `with contracted(): ...`. Compiled once, by g++."""
    return emulator_build.kernels_of(_kernels_compiled(profiled=False, contracted=True))


@functools.cache
def _kernels_compiled(profiled, contracted):
    """minillama's kernels in one more form, compiled when it is first asked for."""
    require("simt")
    return emulator_build.load(emulator_build.build(source_folder() / "simt_kernels.cpp", profiled, "", contracted))


# ---- RoPE

def fused_rope(x, rotations, interleaved=True, backend="cpu"):
    """`minillama.rope.apply_rope` (or, not interleaved, `apply_rope_half_split`) by a compiled kernel.

    x: (..., T, H, d) fp32, bf16 or fp16; rotations: (T, d/2) or x's batch + (T, d/2), complex64. Computed in fp32,
    rounded once, as the reference is. Has a gradient for x, none for the table. RuntimeError if it is not built.
    """
    operator = operator_of("rope", backend, x)
    wanted = (*x.shape[-3:-2], x.shape[-1] // 2)
    if x.dim() < 3 or x.shape[-1] % 2 or tuple(rotations.shape) not in (wanted, (*x.shape[:-3], *wanted)):
        raise ValueError(f"x has shape {tuple(x.shape)} and rotations {tuple(rotations.shape)}: wanted (..., T, H, d), "
                         "d even, and (T, d/2) or that with x's batch in front")
    x_BTHd, table = x[None].flatten(0, -4), _table(rotations)
    if table.dim() != 3:
        table = table[None].flatten(0, -4)
    return operator(x_BTHd, x_BTHd[:, :, :0], table, None, 0, interleaved, False)[0].view(x.shape)


def fused_rope_qk(q_BTHd, k_BTKd, rotations, positions=None, offset=0, interleaved=True, in_place=False,
                  out=None, backend="cpu"):
    """Queries and keys turned by one launch -> (q, k). Of each head the first r columns turn, the others are copied.

    q, k: fp32, bf16 or fp16, any strides; rotations: complex64, (rows, r/2), r <= d. Token t of every row of the batch
    turns by row offset + t, or by row positions[t] or positions[b, t] (int64); or rotations is (B, T, r/2).
    Computed in fp32, rounded once, with a gradient for q and k. Two forms without one (RuntimeError if it is wanted):
    in_place writes over q and k; out is two tensors for the results, the second of them such as rows of a cache.
    RuntimeError for shapes that do not fit and positions without a row (a GPU makes NaN of those).
    """
    form = "rope_" if in_place else "rope" if out is None else "rope_into"
    operator = operator_of("rope", backend, q_BTHd, form)
    how = (_table(rotations), positions, offset, interleaved, False)
    if in_place and out is not None:
        raise ValueError("in_place and out were both given: a result has one place")
    result = operator(q_BTHd, k_BTKd, *(out or ()), *how)
    return (q_BTHd, k_BTKd) if in_place else out or result


def _table(rotations):  # (cos, sin) of complex64 rotations, in their own memory: (..., r/2, 2) fp32
    if rotations.dtype != torch.complex64:
        raise ValueError(f"rotations are {rotations.dtype}, wanted torch.complex64, as rope_rotations makes them")
    return torch.view_as_real(rotations.resolve_conj())


def _rope_setup_context(ctx, inputs, output):
    _, _, *tensors, ctx.offset, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(*tensors)


def _rope_backward(operators, ctx, d_q, d_k):
    """A rotation's transpose is its inverse: the gradients are turned back by the same angles."""
    return (*operators.rope(d_q, d_k, *ctx.saved_tensors, ctx.offset, ctx.interleaved, not ctx.inverse), *[None] * 5)


# ---- NF4

def nf4_matmul(x, stored, backend="cpu"):
    """x W^T for x (..., in) in fp32, bf16 or fp16 and an NF4Tensor of shape (out, in): (..., out) in x's dtype.

    As `NF4Tensor.product`, but W is never formed: levels, scales and sums stay fp32, and only the result is rounded.
    The gradient goes to x alone, from the same bits. RuntimeError if the backend is not built. With activations
    "int8" (on "cpu", no gradient) x is rounded to int8 in pieces of 64 columns, levels to 112ths; their sums are exact.
    """
    if len(stored.shape) != 2:
        raise ValueError(f"the weight has shape {tuple(stored.shape)}: a product needs a matrix (out, in)")
    if x.shape[-1] != stored.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)} and the weight {tuple(stored.shape)}: the last two must agree")
    rounded = "nf4_matmul_int8" if stored.activations == "int8" else None
    return operator_of("nf4_matmul", backend, x, rounded)(x, *stored.parts(), stored.shape[0], stored.block_size)


def nf4_matmul_backward(dy, stored, backend="cpu"):
    """dy W (..., in) for dy (..., out): the gradient that `nf4_matmul` gives x, for those who keep their own graph."""
    operator = operator_of("nf4_matmul", backend, dy, "nf4_matmul_backward")
    return operator(dy, *stored.parts(), stored.shape[1], stored.block_size)


def _nf4_fake(x, codes, absmax, absmax_scale, absmax_offset, features, block_size):
    return x.new_empty((*x.shape[:-1], features))


def _nf4_remember(ctx, inputs, output):
    x, *stored, _, ctx.block_size = inputs
    ctx.in_features = x.shape[-1]
    ctx.save_for_backward(*stored)


def _nf4_backward(operators, ctx, gradient):
    dx = operators.nf4_matmul_backward(gradient, *ctx.saved_tensors, ctx.in_features, ctx.block_size)
    return dx, None, None, None, None, None, None


# ---- attention

def flash_attention(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None, backend="simt"):
    """`minillama.attention.attention` without the T x S matrix (arXiv 2205.14135), with all three gradients.

    fp32, bf16 or fp16, computed in fp32; any strides; v as wide as q; d up to 512 with "cpu", else to 256. Same inputs
    give the same bits, for any number of threads. RuntimeError if it is not built.
    """
    return operator_of("flash_attention", backend, q_BHTd)(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS)[0]


def _flash_fake(q, k, v, causal, mask=None):
    rows = q.new_empty((*q.shape[:3], 2), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32), rows


def _flash_remember(ctx, inputs, output):
    *tensors, ctx.causal, mask = inputs
    out, _, rows = output
    ctx.mark_non_differentiable(rows)
    ctx.save_for_backward(*tensors, out, rows, mask)


def _flash_backward(operators, ctx, d_out, d_lse, _):
    *tensors, mask = ctx.saved_tensors
    return *operators.flash_attention_backward(d_out, d_lse, *tensors, ctx.causal, mask), None, None
