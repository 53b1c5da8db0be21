"""Every kernel of every backend against the truth, as one table: `python -m minillama kernels verify`.

The truth is the formula in float64, from the stored bits. Beside each of its numbers stands how far fp32 may be off it
on any CPU: one rounding an operation, by the rules of `minillama.parity.rounding`, and one more to the
result's dtype.
Plain PyTorch ("reference") may round each intermediate result to the dtype of its inputs too, as its operations do.
"""

import contextlib
import itertools
import math
import platform
import time
from dataclasses import dataclass
from functools import partial

import torch

from minillama import kernels
from minillama.attention import attention
from minillama.parity import kernels_thorough
from minillama.parity.rounding import FP32, Bounded, exact
from minillama.quant.nf4 import DYNAMIC_MAP, GROUP, NF4_LEVELS, quantize_nf4
from minillama.rope import apply_rope, apply_rope_half_split, rope_frequencies, rope_rotations
from minillama.simt.compiler import NotBuilt, contraction, require_compiler

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUSED = "simt+fma"  # backend "simt", its products and sums in one operation as nvcc's are: `kernels.contracted`
PLAIN_EXP = 40 * FP32  # PyTorch's softmax on a CPU takes an exp that is right to 20 units in the last place


@dataclass(frozen=True)
class Row:
    """One comparison: `error` and `allowed` of the element that comes nearest to its bound, or goes furthest beyond."""

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


# ---- cases: (shape as text, dense inputs that have a gradient, function of (backend, *inputs), and the truth of
# (inputs, gradient of the result, whether plain PyTorch computes): {"out": Bounded, "d<name>": Bounded, ...})

def rope_cases(dtype, shapes=((1, 1, 1, 2, True), (2, 7, 3, 70, False), (1, 33, 5, 64, True), (1, 5, 7, 80, False))):
    """Both layouts, odd sizes, more pairs than a warp has lanes, rows of whole vectors, and a strided input."""
    for B, T, H, d, interleaved in shapes:
        x = torch.randn(B, H, T, d).to(dtype).transpose(1, 2)  # (B, T, H, d), strided
        rotations = rope_rotations(torch.arange(1000, 1000 + T), rope_frequencies(d)).to(x.device)

        def run(backend, x, rotations=rotations, interleaved=interleaved):
            if backend == "reference":
                return (apply_rope if interleaved else apply_rope_half_split)(x, rotations)
            if interleaved:  # rows that positions choose, the last one first
                backwards = torch.arange(len(rotations)).flip(0)
                return kernels.fused_rope_qk(x, x[:, :, :0], rotations.flip(0), backwards, backend=backend)[0]
            return kernels.fused_rope(x, rotations, interleaved, backend)

        def truth(inputs, d_out, plain, rotations=rotations, interleaved=interleaved):
            return {"out": rotate_pairs(inputs["x"], rotations, interleaved),
                    "dx": rotate_pairs(d_out, rotations.conj(), interleaved)}

        yield f"B={B} T={T} H={H} d={d} {'interleaved' if interleaved else 'half-split'}", {"x": x}, run, truth


def rotate_pairs(x_BTHd, rotations, interleaved):
    """Each pair (a, b) becomes (a cos - b sin, b cos + a sin), in fp32 for every dtype."""
    shape, dim = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    first, second = (exact(part) for part in x_BTHd.unflatten(-1, shape).unbind(dim))
    cos, sin = exact(rotations.real[:, None]), exact(rotations.imag[:, None])  # one rotation for all heads
    a, b = first * cos - second * sin, second * cos + first * sin
    return Bounded(*(torch.stack(pair, dim).flatten(-2) for pair in ((a.value, b.value), (a.error, b.error))))


NF4_SHAPES = ((1, 1, 2, False), (3, 8, 64, True), (17, 25, 71, True), (9, 136, 192, False), (1, 19, 1056, True),
              (17, 40, 640, True))


def nf4_cases(dtype, shapes=NF4_SHAPES):
    """Blocks inside and across rows; more of them than share a scale, more rows and columns than are taken at once."""
    for M, N, K, double, *block in shapes:
        stored = quantize_nf4(torch.randn(N, K), *block, double_quantization=double)

        def run(backend, x, stored=stored):
            if backend == "reference":
                return x @ stored.dequantize(x.dtype).T
            return kernels.nf4_matmul(x, stored, backend)

        def truth(inputs, d_out, plain, stored=stored):
            weight = dequantize_by_formula(stored)
            rounded = weight if d_out.dtype == torch.float32 else weight.stored(d_out.dtype)
            gradient = dequantize_by_formula(stored, d_out.dtype)  # tensor cores multiply levels that were rounded too
            many = plain or len(d_out) >= 8  # rows
            return {"out": exact(inputs["x"]) @ (rounded if many else weight).T,
                    "dx": exact(d_out) @ (rounded if plain else gradient.stored(d_out.dtype) if many else weight)}

        yield f"M={M} N={N} K={K} {'double' if double else 'single'}", {"x": torch.randn(M, K).to(dtype)}, run, truth


def dequantize_by_formula(stored, level_dtype=torch.float32):
    """The weight of an NF4Tensor: level * absmax, and where absmax is a code: entry of the map * scale + offset. A
    level may be rounded to `level_dtype`, whose error is known: there are 16."""
    numbers = torch.stack([stored.codes >> 4, stored.codes & 15], 1).flatten()[:math.prod(stored.shape)].long()
    absmax = exact(stored.absmax)
    if stored.absmax_scale is not None:
        entries = exact(torch.tensor(DYNAMIC_MAP)[stored.absmax.long()])
        scales = exact(stored.absmax_scale.repeat_interleave(GROUP)[:len(stored.absmax)])
        absmax = entries * scales + exact(stored.absmax_offset)
    scales = absmax.moved(lambda x: x.repeat_interleave(stored.block_size)[:len(numbers)])
    levels = torch.tensor(NF4_LEVELS)[numbers]
    levels = Bounded(levels.double(), (levels - levels.to(level_dtype)).abs().double())
    return (scales * levels).moved(lambda x: x.view(stored.shape))


ATTENTION_SHAPES = (
    (1, 1, 1, 1, 1, 1, True, 2**20, 0), (2, 4, 2, 18, 19, 8, True, 8, 0), (1, 2, 1, 5, 37, 80, True, 2**20, 0),
    (1, 3, 3, 33, 7, 128, True, 8, 0), (1, 2, 2, 16, 33, 64, False, 8, 0), (1, 2, 1, 17, 33, 32, True, 8, 100),
    (1, 4, 2, 17, 35, 200, True, 8, 0), (1, 2, 1, 18, 37, 131, True, 8, 0, "masked"),
    (2, 2, 1, 35, 70, 64, True, 8, 0, "masked"), (2, 2, 1, 19, 67, 12, False, 2**20, 0, "masked"))


def attention_cases(dtype, shapes=ATTENTION_SHAPES):
    """Tiles cut anywhere, grouped heads, decoding (T < S), rows that see nothing (T > S), masks, scores beyond the 88
    at which exp overflows. Multiples of 1/8 make sums of products exact, and the bounds of what follows narrow."""
    for B, H, K, T, S, d, causal, fine, far, *masked in shapes:
        q, k, v = ((torch.randn(B, *shape, d) * fine).round() / fine for shape in ((H, T), (K, S), (K, S)))
        q, k, v = (x.to(dtype) for x in (q, k + far, v))
        mask = (torch.arange(S) >= 5) & (torch.rand(B, T, S) < 0.6) if masked else None

        def run(backend, q, k, v, causal=causal, mask=mask):
            attend = attention if backend == "reference" else partial(kernels.flash_attention, backend=backend)
            return attend(q, k, v, causal, None if mask is None else mask.to(q.device))

        def truth(inputs, d_out, plain, causal=causal, mask=mask):
            return attend_by_formula(**inputs, d_out=d_out, causal=causal, plain=plain, mask_BTS=mask)

        kinds = [*["causal"] * causal, *["far"] * (far != 0), *masked]
        yield " ".join([f"B={B} H={H} K={K} T={T} S={S} d={d}", *kinds]), {"q": q, "k": k, "v": v}, run, truth


def attend_by_formula(q, k, v, d_out, causal, plain, mask_BTS=None):
    """softmax(q k^T / sqrt(d)) v and its gradients (arXiv 2205.14135, appendix B.4), by hand.

    Exponents have, beside a score's own roundings, five of its distance from the maximum: of the difference, the scale,
    log2(e), and two products. What a tile's maximum lies below a later one is a part of that distance, and each new
    maximum five roundings more, of its exponential and products.
    """
    (B, H, T, d), (K, S), scale = q.shape, k.shape[1:3], 1 / math.sqrt(q.shape[-1])
    stored, computed = q.dtype, q.dtype if plain else torch.float32
    q, d_out = (x.reshape(B, K, H // K * T, d) for x in (q, d_out))  # heads that share a key: one matrix
    q, k, v, d_out = (exact(x, computed) for x in (q, k, v, d_out))
    tile = 8 if d > 128 and stored == torch.float32 else 16  # keys: at least so many are between two maxima
    seen = (torch.arange(S) <= torch.arange(T)[:, None] + (S - T if causal else S)).repeat(H // K, 1)
    if mask_BTS is not None:
        seen = seen & mask_BTS.expand(B, T, S)[:, None].repeat(1, 1, H // K, 1)  # (B, 1, G T, S)
    scores = q @ k.T * scale
    highest = scores.value.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
    roundings = 5 * (highest - scores.value).where(seen, 0) + 5 * (S // tile) + 2
    shares = scores.softmax(seen, FP32 * roundings + (PLAIN_EXP if plain else 0))
    multiplied = (lambda x: x) if plain or stored == torch.float32 else lambda x: x.stored(stored)  # by tensor cores
    mixed = multiplied(shares)
    out, d_shares = mixed @ v, d_out @ v.T
    delta = (shares * d_shares if plain else d_out * (exact(shares.value) @ v).stored(stored)).sum()
    if not plain:  # from the output: wrong shares in it matter as much as d_shares, not as all of d_out and v
        delta = Bounded(delta.value, delta.error + (mixed.error * d_shares.value.abs()).sum(-1, keepdim=True))
    d_scores = multiplied(shares * (d_shares - delta)) * scale
    found = {"out": out, "dq": d_scores @ k, "dk": d_scores.T @ q, "dv": mixed.T @ d_out}
    return {name: x.moved(lambda x, rows=T if name in ("out", "dq") else S: x.view(B, -1, rows, d))
            for name, x in found.items()}


CASES = {"rope": rope_cases, "nf4_matmul": nf4_cases, "flash_attention": attention_cases}


def direction_like(out):
    """The gradient of `out` in every comparison: the same numbers for every dtype and device."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1), device="cpu").to(out)


def results(run, backend, inputs):
    """{"out": ..., "d<name>": ...}: what `run` makes of the inputs, and its gradients for one fixed direction."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}  # in the memory where they lie
    out = run(backend, *inputs.values())
    gradients = torch.autograd.grad(out, list(inputs.values()), direction_like(out))
    return {"out": out.detach(), **{f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}}


def compare(operator, backend, dtype, shape, inputs, run, truth):
    """The rows of one case."""
    ours = results(run, backend.replace(FUSED, "simt"), inputs)
    for name, wanted in truth(inputs, direction_like(ours["out"]), backend == "reference").items():
        wanted = wanted if dtype == wanted.dtype else wanted.stored(dtype)
        error = (ours[name].double() - wanted.value).abs()
        worst = (error / wanted.error.clamp(min=1e-300)).argmax()  # NaN counts as the largest; 0 may be allowed 0
        yield Row(operator, backend, dtype, shape, name, *(float(x.flatten()[worst]) for x in (error, wanted.error)))


def verify(backends=None, operators=None, thorough=False):
    """Rows of every operator on every backend that is built here (or on those named: RuntimeError if not built); of
    `kernels_thorough` too."""
    for operator in operators or CASES:
        if operator not in CASES:
            raise ValueError(f"operator {operator!r} is not known: choose from {', '.join(CASES)}")
        for backend in backends or [*kernels.built_backends(), *[FUSED] * (not why_not_fused())]:
            kernels.require(base := backend.replace(FUSED, "simt"))
            if backend == "cuda" and not torch.cuda.is_available():
                if backends:
                    raise RuntimeError("backend 'cuda' is built here, but there is no GPU: choose another backend")
                continue
            if base in ("reference", *kernels.KERNELS[operator]):
                for dtype in DTYPES:
                    yield from rows_of(operator, backend, dtype, thorough)


def rows_of(operator, backend, dtype, thorough=False):
    """All rows at once: the default device must be the caller's own again before it sees the first."""
    torch.manual_seed(0)
    with (kernels.contracted() if backend == FUSED else contextlib.nullcontext(),
          torch.device(kernels.DEVICES.get(backend, "cpu"))):
        cases, base = list(CASES[operator](dtype)), backend.replace(FUSED, "simt")
        more = [*cases, *CASES[operator](dtype, kernels_thorough.SHAPES[operator])] if thorough else cases
        rows = [row for case in kernels_thorough.with_places(more, thorough and base != "reference")
                for row in compare(operator, backend, dtype, *case)]
        return rows + [Row(operator, backend, dtype, shape, law, float(count), 0.0)
                       for shape, inputs, run, _ in cases * thorough
                       for law, count in kernels_thorough.laws(base, inputs, run, results)]


def why_not_fused():
    """Why there is no FUSED here; "" where there is."""
    try:
        kernels.require("simt")
        require_compiler()
        contraction(True)
    except NotBuilt as error:
        return str(error)
    return ""


def print_table(backends=None, operators=None, thorough=False):
    """Print the table in Markdown, as it is made, and return whether every row is within its bound: for each operator,
    backend and dtype the row that is nearest to its bound, or those beyond."""
    start, bad, count = time.perf_counter(), 0, 0
    gpu = f", {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if torch.cuda.is_available() else ""
    print(f"On {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}{gpu}\n")
    print("| operator | backend | dtype | results | nearest | error | allowed | verdict |\n" + "|---" * 8 + "|")
    found = verify(backends, operators, thorough)
    for rows in (list(group) for _, group in itertools.groupby(found, lambda x: (x.operator, x.backend, x.dtype))):
        wrong = [row for row in rows if not row.ok]
        for row in wrong or [max(rows, key=lambda row: row.error / max(row.allowed, 1e-300))]:
            print(f"| {row.operator} | {row.backend} | {str(row.dtype)[6:]} | {1 if wrong else len(rows)} | "
                  f"{row.shape}: {row.result} | {row.error:.1e} | {row.allowed:.1e} | {'ok' if row.ok else 'WRONG'} |")
        bad, count = bad + len(wrong), count + len(rows)
    absent = [name for name in kernels.LIBRARIES if name not in kernels.built_backends()]
    note = f"; not built here: {', '.join(absent)} ({kernels.BUILD})" if absent else ""
    note += f"; no {FUSED}: {why}" if (why := why_not_fused()) and not absent else ""
    note += "; no GPU here to run cuda on" if "cuda" not in absent and not torch.cuda.is_available() else ""
    print(f"\n{count - bad} of {count} within their bounds in {time.perf_counter() - start:.1f} s{note}")
    return bad == 0
