"""Attention on the CPU, causal, 8 heads of width 64: our kernel beside PyTorch's fused attention (SDPA).

Forward, and forward with all three gradients, in fp32 and bf16. In bf16 the peer is SDPA on tensors cast to fp32, its
result cast back: on most CPUs that is the faster way. Times are CPU time, so that a busy machine does not count; with
two threads it is the sum of both. The limit is the same number of FLOPs, those of the visible half, by torch.mm; where
that multiplies by AVX2 though the CPU has AVX-512, as MKL on AMD's, more than all of it can be reached.
"""

import time

import _rounds  # first: it speaks to OpenMP before torch loads
import torch
import torch.nn.functional as F

from minillama import kernels

HEADS, WIDTH = 8, 64
FLOPS_FORWARD, FLOPS_BACKWARD = 4, 10  # of a score and a number of a head: two products, and five


def ours(q, k, v):
    return kernels.flash_attention(q, k, v, backend="cpu")


def fused(q, k, v):
    """SDPA in fp32, for tensors of any dtype."""
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True).to(q.dtype)


def forward(attend, inputs):
    plain = [x.detach() for x in inputs]
    return lambda: attend(*plain)


def with_gradients(attend, inputs):
    direction = torch.ones_like(inputs[0])
    return lambda: torch.autograd.grad(attend(*inputs), inputs, direction)


def multiply(flops, n):
    """Square matrix products of about `flops` operations altogether, and by how much they miss it."""
    a, b = torch.ones(n, n), torch.ones(n, n)
    times = max(1, round(flops / (2 * n**3)))

    def work():
        for _ in range(times):
            torch.mm(a, b)

    return work, flops / (times * 2 * n**3)


def cpu_seconds(work, times):
    """CPU time of one call, of several in a row."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def row(what, contend, dtype, T, flops_per_score, chosen):
    """What came out for one length: our kernel, SDPA and products of as many FLOPs, in turns."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, T, HEADS, WIDTH).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    flops = flops_per_score * HEADS * WIDTH * T * T / 2
    products, part = multiply(flops, min(512, T))
    contenders = {"ours": contend(ours, inputs), "peer": contend(fused, inputs), "limit": products}
    results = [contenders[name]() for name in ("ours", "peer")]
    for a, b in zip(*([r] if torch.is_tensor(r) else r for r in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-2)  # else no timing
    repeats = 1 if chosen.small else max(1, int(1e9 / flops))
    seconds = _rounds.alternate(contenders, chosen.rounds, lambda work: cpu_seconds(work, repeats))
    times = {name: [1e3 * s * (part if name == "limit" else 1) for s in values] for name, values in seconds.items()}
    size = f"B=1 H={HEADS} T={T} d={WIDTH}, {str(dtype).removeprefix('torch.')}"
    peer = "SDPA" if dtype == torch.float32 else "cast and SDPA"
    return _rounds.Row(f"attention, causal, {what}, against {peer}, CPU time", size, "ms", times["ours"], times["peer"],
                       times["limit"], more_is_better=False)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    kernels.require("cpu")
    both = ("forward", forward, FLOPS_FORWARD), ("forward and backward", with_gradients, FLOPS_FORWARD + FLOPS_BACKWARD)
    lengths = {torch.float32: (256, 512, 1024, 2048, 4096), torch.bfloat16: (256, 1024)}
    rows = [row(what, contend, dtype, T, flops, chosen) for dtype in lengths for what, contend, flops in both
            for T in ((64,) if chosen.small else lengths[dtype])]
    _rounds.show(rows)


if __name__ == "__main__":
    main()
