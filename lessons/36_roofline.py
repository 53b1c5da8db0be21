# %% [markdown] question
# # 36 · The roofline
# Covers: `csrc/cpu/nf4_matmul.cpp`, `csrc/cpu/rope.cpp`, `minillama/kernels.py`
# Needs: 12, 32, 33, 35
# Time: 15 s
# Teaches: FLOPs, bytes, arithmetic intensity, roofline, memory-bound and compute-bound, why decoding is batched
# Paper: [Williams, Waterman and Patterson 2009](https://doi.org/10.1145/1498765.1498785)
#
# **Question.** A kernel takes two milliseconds. Is that good? Another kernel can only
# tell us which of the two is better. How good could *any* kernel be, on this machine?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $F$ | `flops` | | FLOPs: additions and multiplications of a kernel |
# | $Q$ | `moved` | | bytes that must move between memory and CPU |
# | $I$ | `flops / moved` | | arithmetic intensity: FLOPs for each byte |
# | $P$ | `peak` | | FLOPs that the CPU does in a second, at most |
# | $\beta$ | `bandwidth` | | bytes that the memory moves in a second, at most |
# | $M$ | `M` | | tokens: rows of $x$ |
# | $N$, $K$ | `N`, `K` | | outputs, inputs of a layer with weights $W$: $y = x W^T$ |
# | $w$, $e$ | `w`, `e` | | bytes of a weight; of a number of $x$ or $y$ |
# %% naive
import time
from functools import partial

import torch

from minillama import kernels
from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS, figure, show
from minillama.quant.nf4 import quantize_nf4
from minillama.rope import apply_rope_qk, rope_frequencies, rope_rotations

torch.set_num_threads(1)  # one core: its limits, its kernels
torch.manual_seed(0)
T, d, D = 1024, 128, 2048  # tokens, width of a head; width of the layers we time
q, k = (torch.randn(1, T, heads, d).bfloat16() for heads in (32, 8))
turned = [torch.zeros_like(x) for x in (q, k)]
rotations = rope_rotations(torch.arange(T), rope_frequencies(d))
rope = partial(kernels.fused_rope_qk, q, k, rotations, out=turned, backend="cpu")
x, W = torch.randn(256, D), torch.randn(D, D)


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


ours = ("RoPE", rope, rope_flops := 3 * (q.numel() + k.numel()))
for name, run, flops in (("product", lambda: x @ W.T, 2 * 256 * D * D), ours):
    took = min(seconds(run) for _ in range(5))
    print(f"{name}: {1e3 * took:.1f} ms, {flops / took / 1e9:.1f} GFLOP a second")
# %% [markdown] formula
# (A product does $F = 2 M N K$: each weight is multiplied and added, for each token.
# RoPE does 3 for each number. G is a billion.)
#
# By this measure RoPE is far worse. But that is unfair: RoPE has hardly anything to
# compute. It waits for memory (lesson 32). So a machine needs *two* rulers. Computing
# $F$ takes at least $F / P$ seconds. Moving $Q$ takes at least $Q / \beta$. At best
# both happen at the same time, and the longer one decides. Divide $F$ by that time:
#
# $$I = \frac{F}{Q}, \qquad \mathrm{roof}(I) = \min(P,\ \beta\, I)$$
# ascii: I = F / Q,  roof(I) = min(P, beta I)
#
# No kernel of intensity $I$ does more FLOPs in a second. Left of the **ridge**
# $I = P / \beta$ lies the memory's roof: such a kernel is *memory-bound*. Right of it
# lies the CPU's: *compute-bound*. For a layer, with every byte moved only once:
#
# $$Q = w\,N K + e\,M (N + K)$$
# ascii: Q = w N K + e M (N + K)
#
# In decoding (lesson 12) a step has one token for each text: $M$ is the **batch**. Let
# us count, for the widest layers of LLaMA-7B, before we measure anything.
# %% intensity
def work(M, N, K, w, e):
    """FLOPs, and bytes that must move."""
    return 2 * M * N * K, w * N * K + e * M * (N + K)


stored = quantize_nf4(W)
nf4 = stored.stored_bytes() / D**2  # bytes of a weight, with its share of the scales
counted = {}
for M in (1, 16, 256):
    for name, w in (("bf16", 2), ("NF4", nf4)):
        flops, moved = work(M, 11008, 4096, w, 2)
        counted[name, M] = round(flops / moved, 2)
    print(f"batch {M}: {counted['bf16', M]} FLOPs a byte in bf16 or fp16, "
          f"{counted['NF4', M]} in NF4")
assert counted["bf16", 1] == 1.0 and counted["NF4", 1] == 3.87
# %% limits
memory = torch.ones(2**15, 1024)  # 128 MiB: more than most caches hold
vector, (source, target) = torch.ones(1024), memory.numpy()[:2**13].reshape(2, -1)
a, b = torch.randn(2, 512, 512)
a16, b16, b4 = a.bfloat16(), b.bfloat16(), quantize_nf4(b)
loops = partial(kernels.nf4_matmul, a, b4, "cpu")  # as many FLOPs as torch.mm(a, b)
limits = {"fp32": (2 * 512**3, lambda: torch.mm(a, b)),  # FLOPs
          "bf16": (2 * 512**3, lambda: torch.mm(a16, b16)),
          "copy": (2 * source.nbytes, lambda: target.__setitem__(..., source)),  # bytes
          "read": (memory.nbytes, lambda: torch.mv(memory, vector))}
unit = {"RoPE": "fp32", "fp32": "fp32", "NF4": "fp32", "bf16": "bf16"}  # what computes


def in_turns(jobs, rounds=10):
    """The least seconds of each job and limit, in turns: a slow moment falls on all."""
    least = dict.fromkeys([*limits, *jobs], 60.0)
    for _ in range(rounds):
        for name, (_, _, run) in jobs.items():
            for limit in "fp32 fp32 bf16 bf16 copy read".split():
                least[limit] = min(least[limit], seconds(limits[limit][1]))
            least["fp32"] = min(least["fp32"], seconds(loops))
            # 128 MiB were read: the caches hold nothing that the job needs
            least[name] = min(least[name], seconds(run))
    return least
# %% [markdown] measure
# The limits are measured like everything else: the best of many copies, or of many
# matrices read to be multiplied by one vector; and the best product that is seen, of
# two square matrices or among the jobs, by `torch` or by our own loops: on some CPUs
# the library uses narrower vectors than there are. bf16 may have units of its own, and
# so a roof of its own. Before each job the caches are emptied. In decoding they are so
# as well: all other layers pass before one has its next turn.
#
# The jobs are torch's products in fp32 and bf16, and minillama's kernels for
# CPUs: RoPE in one pass, and the product with 4-bit weights. Both come from
# plain C++ loops, turned into vector instructions (lesson 35). RoPE asks for the next
# token's bytes while it turns this one's. The product decodes each weight once, into a
# tile that stays in the nearest cache, and uses it there for all $M$ rows. It computes
# in fp32, so its roof is that of fp32.
#
# (A dot may come out a little above the slope: both are measured, and one of them may
# have had the worse moments.)
# %% dots
jobs = {("RoPE", T): (rope_flops, 2 * (q.nbytes + k.nbytes) + rotations.nbytes, rope)}
W16 = W.bfloat16()
for M in (1, 4, 16, 64, 256):
    x = torch.randn(M, D)
    x16 = x.bfloat16()
    jobs["fp32", M] = *work(M, D, D, 4, 4), lambda x=x: x @ W.T
    jobs["bf16", M] = *work(M, D, D, 2, 2), lambda x=x16: x @ W16.T
    jobs["NF4", M] = (*work(M, D, D, nf4, 4),
                      lambda x=x: kernels.nf4_matmul(x, stored, "cpu"))
    error = (jobs["NF4", M][2]() - x @ stored.dequantize().T).abs().max()
    assert error < 1e-3  # nothing is timed that is not right
wanted = apply_rope_qk(q, k, rotations)
assert all((a - b).abs().max() < 0.04 for a, b in zip(turned, wanted, strict=True))

took = in_turns(jobs)
peak = {name: most / took[name] for name, (most, _) in limits.items()}
for (name, M), (flops, *_) in jobs.items():  # a roof is the best that was seen
    peak[unit[name]] = max(peak[unit[name]], flops / took[name, M])
bandwidth = max(peak.pop("read"), peak.pop("copy"))
print(f"in a second: {bandwidth / 1e9:.1f} GB, {peak['fp32'] / 1e9:.0f} GFLOP in fp32, "
      f"{peak['bf16'] / 1e9:.0f} in bf16")
dots, share = {}, {}
for (name, M), (flops, moved, _) in jobs.items():
    speed, I = flops / took[name, M], flops / moved
    share[name, M] = speed / min(peak[unit[name]], bandwidth * I)
    dots[name, M] = I, speed / 1e9
    print(f"{name:4} M = {M:4}: {1e3 * took[name, M]:6.2f} ms, {I:6.2f} FLOPs a byte, "
          f"{speed / 1e9:6.1f} GFLOP a second, {share[name, M]:.0%} of the roof")
assert max(share.values()) < 1.5  # 1, but for machines whose speed sways
assert dots["fp32", 256][1] > 2 * dots["fp32", 1][1]
# %% figure
title, y_label = "No dot breaks through the roof", "GFLOP a second"
picture, axes = figure(title, "FLOPs a byte", y_label, figsize=(5.4, 4.0))
for name in ("bf16", "fp32"):
    xs = [0.3, peak[name] / bandwidth, 3000]
    axes.loglog(xs, [min(peak[name], bandwidth * I) / 1e9 for I in xs], color=CONTEXT)
    at, side = (1.1, "bottom") if name == "bf16" else (0.9, "top")
    axes.text(3000, at * peak[name] / 1e9, f"{name} at most", color=CONTEXT, ha="right",
              va=side)
axes.text(0.7, bandwidth / 1e9, "memory at most", color=CONTEXT, rotation=41)
for name, colour, n, at in (("RoPE", OURS, 0, (4, 3)), ("fp32", ORACLE, 3, (-12, 7)),
                            ("bf16", CONTRAST, 3, (7, -5)), ("NF4", OURS, 2, (-24, 4))):
    places = [(*place, M) for (of, M), place in dots.items() if of == name]
    xs, ys, Ms = zip(*places, strict=True)
    axes.plot(xs, ys, color=colour, marker="o", markersize=5, linewidth=0.8)
    axes.annotate(name, (xs[n], ys[n]), xytext=at, textcoords="offset points",
                  color=colour)
    for I, y, M in (places[0], places[-1]) if name == "NF4" else ():
        axes.annotate(f"M = {M}", (I, y), xytext=(2, -12 if M == 1 else 5),
                      textcoords="offset points", color=colour)
ticks = (1, 10, 100, 1000)
axes.set_xticks(ticks, ticks)
axes.set_yticks(ticks, ticks)
axes.set(xlim=(0.3, 3000), ylim=(3, 2 * max(peak.values()) / 1e9))
show(picture, f"With one token bf16 does {counted['bf16', 1]:.2f} FLOPs for each byte, "
              f"NF4 {counted['NF4', 1]}; no dot breaks through the roof")
# %% [markdown] crossing
# **On the slope** a kernel waits for memory, and only fewer bytes help. **Under the
# flat roof** it computes. **Far below both** something else decides, which is in
# neither $F$ nor $Q$. That happens to the 4-bit product of one token: to shift, look up
# and scale a code takes several instructions for each weight, and they count as no
# FLOP. But they are spent once for all $M$ rows, so the dots climb as $M$ grows. The
# roof is a bound, not a forecast.
#
# The slope also says why servers decode many texts at once. Along it twice the batch
# takes no more time: the same weights serve all. Where does that end? At the ridge
# $\rho = P / \beta$. Put $I = \rho$ into the formulas, and solve for $M$:
#
# $$M = \frac{\rho\,w N K}{2 N K - \rho\,e (N + K)}$$
# ascii: M = rho w N K / (2 N K - rho e (N + K))
#
# If the lower part is not positive, no batch is large enough. The same arithmetic works
# for machines that are not here. An H100 GPU does 989 TFLOP a second in bf16 and moves
# 3.35 TB, says its [data sheet](https://www.nvidia.com/en-us/data-center/h100/) (half
# of the number that it gives "with sparsity"). What follows is counted, not timed.
# %% leaves
def leaves(N, K, w, e, ridge):
    """The batch at which a product leaves the memory's roof."""
    room = 2 * N * K - ridge * e * (N + K)
    return ridge * w * N * K / room if room > 0 else float("inf")


ridge = {name: peak[name] / bandwidth for name in peak}
ends = {name: leaves(11008, 4096, w, e, ridge[unit]) for name, w, e, unit in (
    ("fp32", 4, 4, "fp32"), ("NF4", nf4, 4, "fp32"), ("bf16", 2, 2, "bf16"))}
print("with this machine's bytes and FLOPs a second the memory's roof ends at batch "
      f"{ends['NF4']:.1f} in NF4, {ends['fp32']:.1f} in fp32, "
      f"{ends['bf16']:.1f} in bf16")
flops, moved = work(ends["NF4"], 11008, 4096, nf4, 4)
assert abs(flops / moved / ridge["fp32"] - 1) < 1e-9  # there I is the ridge
assert took["NF4", 16] < 8 * took["NF4", 1]  # 16 times the FLOPs

P, beta = 989e12, 3.35e12  # an H100
gpu = {name: round(leaves(11008, 4096, w, 2, P / beta)) for name, w in
       (("bf16", 2), ("NF4", nf4))}
weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # of all linear layers of LLaMA-7B
ms = [round(1e3 * weights * w / beta, 1) for w in (2, nf4)]
print(f"H100: ridge {P / beta:.0f}; the memory's roof ends at batch {gpu['bf16']} in "
      f"bf16, {gpu['NF4']} in NF4;\nat batch 1 the linear layers of LLaMA-7B take at "
      f"least {ms[0]} and {ms[1]} ms a token")
# %% [markdown] exercise
# **Exercise.** Write intensity and roof. Find the first whole batch that memory no
# longer holds back. Then bound the tokens that a server can make in a second: each text
# brings a KV cache of its own (lesson 12), and that no batch can share.
#
# Open `lessons/exercises/ex36_roofline.py`, then run `python3 run.py check 36`.
# %% you_should_see
print(f"You should see: with one token {counted['bf16', 1]:.2f} FLOPs a byte in bf16, "
      f"{counted['NF4', 1]} in NF4; no dot\nthrough the roof; on an H100 the ridge at "
      f"{P / beta:.0f}, the end of the memory's roof at batch {gpu['bf16']} and "
      f"{gpu['NF4']}.")
assert (round(P / beta), gpu) == (295, {"bf16": 328, "NF4": 85}) and ms == [3.9, 1.0]
