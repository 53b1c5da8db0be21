"""Every kernel of every backend against a float64 reference, as one table: `python -m minillama kernels verify`.

The tolerance law: the error of a kernel is at most twice that of plain PyTorch in the same dtype, three times for
gradients, plus one unit in the last place of the largest number, for where PyTorch happens to be exact. The reference
itself is held to 16 such units.
"""

import time
from dataclasses import dataclass

import torch

from minillama import kernels
from minillama.attention import attention
from minillama.quant.nf4 import quantize_nf4
from minillama.rope import apply_rope, apply_rope_half_split, rope_frequencies, rope_rotations

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FACTORS = {False: 2, True: 3}  # is it a gradient?


@dataclass(frozen=True)
class Row:
    """One comparison; `error` and `allowed` are largest absolute differences from the float64 reference."""

    operator: str
    backend: str
    dtype: torch.dtype
    shape: str
    result: str  # "out" or the name of a gradient
    error: float
    allowed: float

    @property
    def ok(self):
        return self.error <= self.allowed  # False for NaN as well


# ---- cases: (shape as text, dense inputs that have a gradient, function of (backend, *inputs))

def rope_cases(dtype):
    """Both layouts, odd sizes, and a strided input."""
    for B, T, H, d, interleaved in ((1, 1, 1, 2, True), (2, 7, 3, 6, False), (1, 33, 5, 64, True)):
        x = torch.randn(B, H, T, d).to(dtype).transpose(1, 2)  # (B, T, H, d), strided
        rotations = rope_rotations(torch.arange(1000, 1000 + T), rope_frequencies(d)).to(x.device)
        reference = apply_rope if interleaved else apply_rope_half_split

        def run(backend, x, rotations=rotations, interleaved=interleaved, reference=reference):
            if backend == "reference":
                return reference(x, rotations)
            return kernels.fused_rope(x, rotations, interleaved, backend)

        yield f"B={B} T={T} H={H} d={d} {'interleaved' if interleaved else 'half-split'}", {"x": x}, run


def nf4_cases(dtype):
    """Blocks inside and across rows, with double quantization and without."""
    for M, N, K, double in ((1, 1, 2, False), (3, 8, 64, True), (17, 24, 72, True), (5, 130, 192, False)):
        stored = quantize_nf4(torch.randn(N, K), double_quantization=double)

        def run(backend, x, stored=stored):
            if backend == "reference":
                return x @ stored.dequantize(x.dtype).T
            return kernels.nf4_matmul(x, stored, backend)

        yield f"M={M} N={N} K={K} {'double' if double else 'single'}", {"x": torch.randn(M, K).to(dtype)}, run


def attention_cases(dtype):
    """Tiles cut anywhere, grouped heads, decoding (T < S) and rows that see nothing (T > S)."""
    for B, H, K, T, S, d, causal in ((1, 1, 1, 1, 1, 1, True), (2, 4, 2, 17, 17, 8, True), (1, 2, 1, 5, 37, 80, True),
                                     (1, 3, 3, 33, 7, 128, True), (1, 2, 2, 16, 33, 64, False)):
        q, k, v = (torch.randn(B, *size, d).to(dtype) for size in ((H, T), (K, S), (K, S)))

        def run(backend, q, k, v, causal=causal):
            attend = attention if backend == "reference" else kernels.flash_attention
            return attend(q, k, v, causal, **({} if backend == "reference" else {"backend": backend}))

        yield f"B={B} H={H} K={K} T={T} S={S} d={d}{' causal' if causal else ''}", {"q": q, "k": k, "v": v}, run


CASES = {"rope": rope_cases, "nf4_matmul": nf4_cases, "flash_attention": attention_cases}


def results(run, backend, inputs):
    """{"out": ..., "d<name>": ...}: what `run` makes of the inputs, and its gradients for one fixed direction."""
    inputs = {name: x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
              for name, x in inputs.items()}
    out = run(backend, *inputs.values())
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), device="cpu")
    direction = direction.to(next(iter(inputs.values())))  # the same numbers for every dtype and device
    gradients = torch.autograd.grad(out, list(inputs.values()), direction)
    return {"out": out.detach(), **{f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}}


def compare(operator, backend, dtype, shape, inputs, run):
    """The rows of one case."""
    exact = results(run, "reference", {name: x.double() for name, x in inputs.items()})
    plain = results(run, "reference", inputs)
    ours = plain if backend == "reference" else results(run, backend, inputs)
    for name, wanted in exact.items():
        unit = torch.finfo(dtype).eps * float(wanted.abs().max())
        of_plain, of_ours = (float((found[name].double() - wanted).abs().max()) for found in (plain, ours))
        allowed = 16 * unit if backend == "reference" else FACTORS[name != "out"] * of_plain + unit
        yield Row(operator, backend, dtype, shape, name, of_ours, allowed)


def verify(backends=None, operators=None):
    """Rows of every operator on every backend that is built here (or on those named: RuntimeError if not built)."""
    for operator in operators or CASES:
        if operator not in CASES:
            raise ValueError(f"operator {operator!r} is not known: choose from {', '.join(CASES)}")
        for backend in backends or kernels.built_backends():
            kernels.require(backend)
            if backend == "cuda" and not torch.cuda.is_available():
                if backends:
                    raise RuntimeError("backend 'cuda' is built here, but there is no GPU: choose another backend")
                continue
            if backend != "reference" and backend not in kernels.KERNELS[operator]:
                continue
            for dtype in DTYPES:
                torch.manual_seed(0)
                with torch.device(kernels.DEVICES.get(backend, "cpu")):
                    for case in CASES[operator](dtype):
                        yield from compare(operator, backend, dtype, *case)


def print_table(backends=None, operators=None):
    """Print the table as it is made, and return whether every row is within its bound."""
    start, bad, count = time.perf_counter(), 0, 0
    print(f"{'operator':16}{'backend':11}{'dtype':10}{'shape':38}{'result':8}{'error':>10}{'allowed':>10}  verdict")
    for row in verify(backends, operators):
        dtype = str(row.dtype).removeprefix("torch.")
        print(f"{row.operator:16}{row.backend:11}{dtype:10}{row.shape:38}{row.result:8}{row.error:10.1e}"
              f"{row.allowed:10.1e}  {'ok' if row.ok else 'WRONG'}")
        bad, count = bad + (not row.ok), count + 1
    absent = [name for name in kernels.LIBRARIES if name not in kernels.built_backends()]
    note = f"; not built here: {', '.join(absent)} ({kernels.BUILD})" if absent else ""
    note += "; no GPU here to run cuda on" if "cuda" not in absent and not torch.cuda.is_available() else ""
    print(f"{count - bad} of {count} within their bounds in {time.perf_counter() - start:.1f} s{note}")
    return bad == 0
