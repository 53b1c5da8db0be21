"""Products of a weight, quantized or in fp32, with few rows on the CPU: CPU time beside PyTorch's fp32 linear,
bitsandbytes and the time that reading the weight's bytes takes.

The weights are several, one after another, so that none is found in a cache. Times are of the process, not of the wall:
other programs on the machine cost the contenders little. One thread unless --threads says otherwise.
"""

import time

import _rounds  # first: it speaks to OpenMP before torch loads
import torch

from minillama import kernels
from minillama.quant.int8 import int8_matmul, quantize_int8
from minillama.quant.nf4 import quantize_nf4

ROWS = (1, 2, 4, 8, 16, 256)
KINDS = ("best", "avx2")


def cpu_seconds(work):
    """Seconds of the CPU that one call takes, in all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def each_of(items, multiply):
    """A function that multiplies with every one of the weights."""
    def work():
        for item in items:
            multiply(item)

    return work


def with_vectors(kind, work):
    """The work by loops of one kind."""
    def chosen():
        torch.ops.minillama.set_vectors(kind)
        work()
        torch.ops.minillama.set_vectors("best")

    return chosen


def reading(tensors):
    """A function that touches every byte of the tensors, by sums of fp32 numbers, and does nothing else with them."""
    numbers = [tensor.flatten()[:tensor.numel() // 16 * 16].view(torch.float32) for tensor in tensors]
    return each_of(numbers, torch.Tensor.sum)


def bitsandbytes_product(weight, x):
    """bitsandbytes' own product with one weight in NF4, double quantization."""
    import bitsandbytes.functional as functional
    from bitsandbytes import matmul_4bit

    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return lambda: matmul_4bit(x, codes.t(), state)


def contenders(weights, nf4, int8, M):
    """{name: work} for M rows; each goes through as many weights as there are, but for bitsandbytes: through one."""
    x = torch.randn(M, weights[0].shape[1])
    rounded = lambda w: torch.ops.minillama.nf4_matmul_int8(x, *w.parts(), w.shape[0], w.block_size)  # noqa: E731
    found = {"fp32": each_of(weights, lambda w: torch.nn.functional.linear(x, w)),
             "read nf4": reading([part for w in nf4 for part in (w.codes, w.absmax)]),
             "read int8": reading([w.codes for w in int8]),
             "kernels cpu, fp32": each_of(weights, lambda w: torch.ops.minillama.linear(x, w)),
             "read fp32": reading(weights)}
    for kind in KINDS:
        found[f"NF4 exact, {kind}"] = with_vectors(kind, each_of(nf4, lambda w: kernels.nf4_matmul(x, w)))
        found[f"NF4 int8 activations, {kind}"] = with_vectors(kind, each_of(nf4, rounded))
        found[f"int8, {kind}"] = with_vectors(kind, each_of(int8, lambda w: int8_matmul(x, w)))
    if M in (1, 256) and _rounds.has_peer("bitsandbytes"):
        found["bitsandbytes"] = bitsandbytes_product(weights[0], x)
    return found


def rows_of(M, weights, nf4, int8, rounds):
    """The table's rows for M rows of x: against PyTorch's fp32 linear, and one more against bitsandbytes."""
    with torch.inference_mode():
        times = _rounds.alternate(contenders(weights, nf4, int8, M), rounds, cpu_seconds)
    per_weight = {name: len(weights) for name in times if "fp32" in name} | {"bitsandbytes": 1}
    ms = {name: [1e3 * t / per_weight.get(name, len(nf4)) for t in values] for name, values in times.items()}
    size = f"{M} x {weights[0].shape[1]} times {' x '.join(map(str, weights[0].shape))}"

    def row(name, peer):
        limit = ms["read fp32" if "fp32" in name else "read int8" if name.startswith("int8") else "read nf4"]
        against = "PyTorch's fp32 linear" if peer == "fp32" else peer
        return _rounds.Row(f"{name}, against {against}", size, "ms", ms[name], ms[peer], limit, more_is_better=False)

    ours = [name for name in ms if name.startswith(("NF4", "int8", "kernels"))]
    beside = [row("NF4 exact, best", "bitsandbytes")] if "bitsandbytes" in ms else []
    return [row(name, "fp32") for name in ours] + beside


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    kernels.require("cpu")
    torch.manual_seed(0)
    side, copies = (256, 2) if chosen.small else (4096, 8)
    weights = [torch.randn(side, side) for _ in range(2)]
    nf4 = [quantize_nf4(weights[i % 2]) for i in range(copies)]
    int8 = [quantize_int8(weights[i % 2]) for i in range(copies)]
    _rounds.show([row for M in ROWS for row in rows_of(M, weights, nf4, int8, chosen.rounds)])


if __name__ == "__main__":
    main()
