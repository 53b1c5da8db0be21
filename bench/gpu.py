"""The CUDA kernels on this computer's GPU, beside PyTorch's and, where it is installed, bitsandbytes' (`run.py gpu`).

NF4 products beside PyTorch's with the dequantized weight; flash attention, forward and with its gradients, beside
scaled_dot_product_attention; RoPE of queries and keys beside eager RoPE. The limit is measured in the same rounds: for
NF4 and RoPE a copy, inside the GPU's memory, of half as many bytes as must move (a copy reads and writes each); for
attention a square product of matrices with as many operations. Times are of CUDA events around ten calls.
"""

import subprocess
import sys
from functools import partial

import _rounds  # first: it speaks to OpenMP before torch loads
import torch

from minillama import kernels
from minillama.quant.nf4 import quantize_nf4
from minillama.rope import apply_rope_qk, rope_frequencies, rope_rotations

CALLS = 10  # between two events
BACKEND, DEVICE = ("cuda", "cuda") if torch.cuda.is_available() else ("simt", "cpu")
FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"


def event_seconds(work):
    """Seconds of one call on the GPU; where there is none, on the CPU."""
    if DEVICE == "cpu":
        return _rounds.seconds(work)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(CALLS):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / CALLS


def in_turn(items, work):
    """A function that does the work with the next item at each call: what lies in a cache is another's."""
    turn = [0]

    def once():
        turn[0] = (turn[0] + 1) % len(items)
        return work(items[turn[0]])

    return once


def copying(count):
    """A copy that moves that many bytes in all: half of them read, half of them written."""
    sources = [torch.empty(max(1, count // 2), dtype=torch.uint8) for _ in range(4)]
    target = torch.empty_like(sources[0])
    return in_turn(sources, target.copy_)


def multiplying(operations, dtype):
    """A product of two square matrices with that many operations, 2 n^3."""
    side = max(16, round((operations / 2) ** (1 / 3)) // 16 * 16)
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return lambda: a @ b


def bitsandbytes_product(weight, x):
    """bitsandbytes' product with the weight in NF4, double quantization."""
    import bitsandbytes.functional as functional
    from bitsandbytes import matmul_4bit

    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return lambda: matmul_4bit(x, codes.t(), state)


def table_rows(what, size, contenders, chosen):
    """A row for each peer: contenders are {"ours": ..., "limit": ..., peers by name}."""
    contenders = {name: work for name, work in contenders.items() if work}
    times = {name: [1e6 * t for t in values]
             for name, values in _rounds.alternate(contenders, chosen.rounds, event_seconds).items()}
    return [_rounds.Row(f"{what}, against {peer}", size, "us", times["ours"], times[peer], times["limit"],
                        more_is_better=False) for peer in times if peer not in ("ours", "limit")]


def nf4_rows(dtype, chosen):
    """Products with 1 to 256 rows, and their gradients."""
    side, copies = (128, 2) if chosen.small else (4096, 16)  # 16 of 8.7 MB: more than a cache holds
    weights = [torch.randn(side, side).to(dtype) for _ in range(2)]
    stored = [quantize_nf4(weights[i % 2]) for i in range(copies)]
    compulsory = stored[0].stored_bytes()
    for M in (1, 16) if chosen.small else (1, 8, 16, 64, 256):
        x, e = torch.randn(M, side).to(dtype), weights[0].element_size()
        for name, ours, peer in (
                ("NF4 product", lambda w, x=x: kernels.nf4_matmul(x, w, BACKEND), lambda w, x=x: x @ w.T),
                ("NF4 gradient", lambda w, x=x: kernels.nf4_matmul_backward(x, w, BACKEND), lambda w, x=x: x @ w)):
            beside = {"ours": in_turn(stored, ours), "PyTorch": in_turn(weights, peer),
                      "limit": copying(compulsory + 2 * e * M * side)}
            if name == "NF4 product" and DEVICE == "cuda" and _rounds.has_peer("bitsandbytes"):
                beside["bitsandbytes"] = bitsandbytes_product(weights[0], x)
            yield from table_rows(f"{name}, M={M}", f"{side} x {side}, {str(dtype)[6:]}", beside, chosen)


def forward(attend, inputs):
    return attend(*(x.detach() for x in inputs))


def gradients(attend, inputs):
    return torch.autograd.grad(attend(*inputs).sum(), inputs)


def attention_rows(dtype, chosen):
    """Causal attention over T tokens, forward and with the gradients of q, k and v."""
    from torch.nn.functional import scaled_dot_product_attention

    B, H, T = (1, 1, 32) if chosen.small else (4, 16, 2048)
    ours = partial(kernels.flash_attention, causal=True, backend=BACKEND)
    peer = partial(scaled_dot_product_attention, is_causal=True)
    for d in (64, 128):
        inputs = [torch.randn(B, H, T, d).to(dtype).requires_grad_() for _ in range(3)]
        for what, call, times in (("attention", forward, 1), ("attention and gradients", gradients, 3.5)):
            yield from table_rows(what, f"B={B} H={H} T={T} d={d}, {str(dtype)[6:]}", {
                "ours": partial(call, ours, inputs), "PyTorch": partial(call, peer, inputs),
                "limit": multiplying(times * 4 * B * H * T * T * d / 2, dtype)}, chosen)


def rope_rows(dtype, chosen):
    """RoPE of 32 + 8 heads of width 128."""
    T = 16 if chosen.small else 4096
    q, k = (torch.randn(1, T, heads, 128).to(dtype) for heads in (32, 8))
    rotations = rope_rotations(torch.arange(T), rope_frequencies(128)).to(DEVICE)
    yield from table_rows("RoPE", f"T={T}, 32 + 8 heads, {str(dtype)[6:]}", {
        "ours": lambda: kernels.fused_rope_qk(q, k, rotations, backend=BACKEND),
        "PyTorch": lambda: apply_rope_qk(q, k, rotations), "limit": copying(2 * (q.nbytes + k.nbytes))}, chosen)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    if DEVICE == "cpu" and not chosen.small:
        print("there is no GPU here that this PyTorch can use, so there is nothing to time; --small shows that it runs")
        return 2
    kernels.require(BACKEND)
    if DEVICE == "cuda":
        command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True)
        print(f"{FIELDS}: {said.stdout.strip()}; CUDA {torch.version.cuda}, PyTorch {torch.__version__}\n")
    with torch.device(DEVICE):
        _rounds.show([row for rows in (nf4_rows, attention_rows, rope_rows) for row in rows(torch.bfloat16, chosen)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
