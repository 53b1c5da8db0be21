# %% [markdown] question
# # 34 · Flash attention
# Covers: `csrc/cuda/flash_attention.cuh`, `csrc/cuda/flash_attention_backward.cuh`, `csrc/cuda/flash_tensor_cores.cuh`
# Needs: 08, 30, 31
# Time: 30 s
# Teaches: FlashAttention, online softmax, tiles in shared memory, causal tiles, logsumexp, recomputation in backward
# Paper: [Dao et al. 2022](https://arxiv.org/abs/2205.14135), algorithm 1; [Dao 2023](https://arxiv.org/abs/2307.08691)
#
# **Question.** Attention compares each of $T$ tokens with each: $T^2$ scores a head.
# With 4096 tokens and 32 heads of width 128, that is 2.1 GB of fp32 in every layer, for
# a result of 67 MB. How can we get the result without ever writing the scores?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $T$, $d$ | `T`, `d` | | tokens, width of a head |
# | $q_i$, $k_j$, $v_j$ | `q`, `k`, `v` | (T, d) each | query, key, value of a token |
# | $s_{ij}$ | `S` | (T, T) | score: $q_i \cdot k_j / \sqrt{d}$ |
# | $m$ | `m` | | the largest score of a query so far |
# | $l$ | `l` | | its sum of $e^{s_{ij} - m}$ so far |
# | $o_i$ | `o` | (T, d) | output: the mean of all $v_j$, weighted by $e^{s_{ij}}$ |
# | $L_i$ | `L` | (T,) | $\ln \sum_j e^{s_{ij}}$, the *logsumexp* of a query |
# | $p_{ij}$ | `P` | (T, T) | weight: $e^{s_{ij} - L_i}$; those of a query add up to 1 |
# %% naive
import torch

from minillama import kernels
from minillama.attention import attention
from minillama.plots import CONTEXT, CONTRAST, OURS, bars, figure, label_end, show

naive = kernels.CudaSource("""
__global__ void two_passes(const float* q, const float* k, const float* v, float* S,
                           float* o, int T) {
  const int d = 32, i = blockIdx.x * 32 + threadIdx.x;  // a thread for each query
  if (i >= T) return;
  float Q[d], O[d] = {}, m = -INFINITY, l = 0;
  for (int c = 0; c < d; ++c) Q[c] = q[i * d + c];
  for (int j = 0; j < T; ++j) {  // first pass: scores, and the largest
    float s = 0;
    for (int c = 0; c < d; ++c) s += Q[c] * k[j * d + c];
    S[j * T + i] = s * rsqrtf(d);  // neighbouring threads write neighbours
    m = fmaxf(m, S[j * T + i]);
  }
  for (int j = 0; j < T; ++j) {  // second pass: weights, and what they mix
    const float p = expf(S[j * T + i] - m);
    l += p;
    for (int c = 0; c < d; ++c) O[c] += p * v[j * d + c];
  }
  for (int c = 0; c < d; ++c) o[i * d + c] = O[c] / l;
}
extern "C" void run(const float* q, const float* k, const float* v, float* S,
                    float* o, int T) {
  LAUNCH((two_passes), (T + 31) / 32, 32, 0, nullptr)(q, k, v, S, o, T);
}""", name="two_passes.cu")
# %% [markdown] formula
# Why two passes? The largest score $m$ is taken off before `expf`, which would overflow
# otherwise. And it is known only when all scores are: they have to wait somewhere.
#
# The way out is to begin *without* knowing it. Go through the keys once. Of those seen
# so far keep three things: the largest score $m$, the sum $l$ of $e^{s - m}$, and the
# sum $o$ of $e^{s - m} v$. Now comes the next key, with score $s$ and value $v$. If $s$
# is larger than $m$, the sums were taken with the wrong maximum. But all their terms
# are wrong by one factor, $\alpha$, so they can be put right:
#
# $$m_{new} = \max(m, s), \qquad \alpha = e^{m - m_{new}}$$
# ascii: m_new = max(m, s),  alpha = exp(m - m_new)
#
# $$l_{new} = \alpha\, l + e^{s - m_{new}}, \qquad o_{new} = \alpha\, o + e^{s - m_{new}}\, v$$
# ascii: l_new = alpha l + exp(s - m_new),  o_new = alpha o + exp(s - m_new) v
#
# This is the **online softmax**
# ([Milakov and Gimelshein 2018](https://arxiv.org/abs/1805.02867)). It begins with
# $m = -\infty$, $l = 0$, $o = 0$, and ends with $o_i = o / l$ and $L_i = m + \ln l$. It
# is exact.
# %% online
import math


def online(q_i, k, v):
    """Output and logsumexp of one query, from one pass over keys and values."""
    m, l, o, rises = -math.inf, 0.0, torch.zeros_like(v[0]), 0
    for k_j, v_j in zip(k, v, strict=True):
        s = (q_i @ k_j).item() / math.sqrt(len(q_i))
        m_new = max(m, s)
        alpha, p = math.exp(m - m_new), math.exp(s - m_new)
        l, o = alpha * l + p, alpha * o + p * v_j
        rises += m_new > m
        m = m_new
    return o / l, m + math.log(l), rises


torch.manual_seed(0)
d = 32
q, k, v = torch.randn(3, 65, d, dtype=torch.float64)
S = q @ k.T / math.sqrt(d)
L = S.logsumexp(-1)
for i in range(65):
    o_i, L_i, rises = online(q[i], k, v)
    assert (o_i - S[i].softmax(-1) @ v).abs().max() < 1e-12 and abs(L_i - L[i]) < 1e-12
print(f"the last of 65 queries: alpha was not 1 for {rises} of 65 keys")
assert rises < 20
# %% [markdown] tiles
# How often are keys read? Our naive kernel fetches every key for every warp, number by
# number, and with each number a sector of 32 bytes (lesson 30).
#
# The library's kernel, which is **FlashAttention**, works by
# **tiles**. A block of threads takes 16 queries. It copies 16 keys and their values
# into shared memory, waits at a barrier, and lets all 16 queries use them. The formulas
# stay: $m_{new}$ now looks at a whole tile, and one $\alpha$ serves 16 keys.
#
# Reads do not become linear: $2 T^2 d / 16$ numbers are left. **Version 2**, for 16-bit
# numbers, takes 64 queries to a tile, and gives both products, $q k^T$ and that of the
# weights with $v$, to *tensor cores* (lesson 39): one instruction multiplies 16 rows of
# 16 numbers by 8 columns. The limit of any version: q, k and v read once.
# %% library
written, read = {}, {}
for T in (1, 31, 32, 33, 65, 128, 256, 384, 512):
    q, k, v = torch.randn(3, 1, 1, T, d)  # (B, H, T, d), fp32
    exact = attention(q.double(), k.double(), v.double(), causal=False)
    S, out = torch.zeros(T, T), torch.zeros(1, 1, T, d)
    with kernels.profile(naive) as p1:
        naive.run(q, k, v, S, out, T)
    with kernels.profile() as p2:
        ours = kernels.flash_attention(q, k, v, causal=False, backend="simt")
    for result in (out, ours):
        assert (result - exact).abs().max() < 2e-6 and not p1.findings + p2.findings
    written[T] = [p.global_store.lanes for p in (p1, p2)]
    read[T] = [32 * p.global_load.sectors for p in (p1, p2)]
    # S and o;  o, and of each row L, its maximum and its sum, for the way back
    assert written[T] == [T * T + T * d, T * d + 3 * T]
    print(f"T = {T:3}: {written[T][0]:6} and {written[T][1]:5} numbers written, "
          f"{read[T][0] / 1e3:8.1f} and {read[T][1] / 1e3:6.1f} KB read")
for T in (1, 33, 512):  # q once, and k and v for each 16 queries, 4 bytes a number
    assert read[T][1] == 4 * (T * d + math.ceil(T / 16) * 2 * T * d)
# %% figure
picture, axes = figure("Without S, writes grow with T, not with its square",
                       "tokens T", "KB written to global memory")
lengths = [T for T in written if T >= 32]
for n, name, colour in ((0, "naive: S and o", CONTRAST), (1, "ours: o, 3 a row", OURS)):
    kilobytes = [4 * written[T][n] / 1e3 for T in lengths]
    axes.plot(lengths, kilobytes, color=colour, marker="o", markersize=4)
    label_end(axes, lengths, kilobytes, name, colour, dy=8)
axes.set(xticks=(32, 128, 256, 384, 512), xlim=(0, 680), ylim=(0, 1250))
many, few = (4 * numbers / 1e3 for numbers in written[512])
show(picture, f"At 512 tokens the naive kernel writes {many:.0f} KB, the library's "
              f"{few:.0f} KB")
T = 256
q, k, v = (x.bfloat16() for x in torch.randn(3, 1, 1, T, d))
with kernels.profile() as p:
    ours = kernels.flash_attention(q, k, v, causal=False, backend="simt")
kilobytes = [*(n / 1e3 for n in read[T]), p.global_load.sectors * 0.032, 0.006 * T * d]
assert p.global_load.sectors * 32 == 2 * (T * d + T // 64 * 2 * T * d)  # 2 bytes each
products = 2 * (T // 16) * (T // 8) * (d // 16)  # of each product: rows, columns, steps
assert p.events("mma_") == products and not p.findings
exact = attention(q.double(), k.double(), v.double(), causal=False)
assert (ours - exact).abs().max() < 2 ** -8  # bf16 keeps 8 bits
names = "naive, fp32", "version 1, fp32", "version 2, bf16", "limit in bf16"
rows = list(zip(names, kilobytes, (CONTRAST, OURS, OURS, CONTEXT), strict=True))
picture = bars("Larger tiles and smaller numbers near the limit", rows,
               f"KB read from global memory, {T} tokens")
show(picture, "KB read: " + ", ".join(f"{name} {value:.0f}" for name, value, _ in rows))
print(f"version 2: {products} products on tensor cores, and no other")
# %% [markdown] backward
# **Causal.** Token $i$ sees no key that comes after it. So a block stops at the
# diagonal: of $n \times n$ tiles, $n (n + 1) / 2$ are visited.
#
# **Backward.** The gradients need $p_{ij}$, all $T^2$. But with $L_i$, one number a
# query, every weight can be *made again*. Write $Q$, $K$, $V$, $O$,
# $S$, $P$ for the matrices of all $q_i$, $k_j$, $v_j$, $o_i$, $s_{ij}$, $p_{ij}$, and
# $dX$ for the gradient of the loss by $X$. $\circ$ multiplies entry by entry; $L_i$ and
# $D_i$ are taken from every entry of row $i$:
#
# $$P = e^{S - L}, \qquad dV = P^T dO, \qquad dP = dO\, V^T$$
# ascii: P = exp(S - L),  dV = P^T dO,  dP = dO V^T
#
# $$dS = P \circ (dP - D), \quad dQ = dS\, K / \sqrt{d}, \quad dK = dS^T Q / \sqrt{d}$$
# ascii: dS = P * (dP - D),  dQ = dS K / sqrt(d),  dK = dS^T Q / sqrt(d)
#
# **Where $D$ comes from.** If $s_{ij}$ rises, $p_{ij}$ rises by $p_{ij}$ times that,
# and all weights of the row shrink by the share $p_{ij}$, to add up to 1 again. So $dS$
# compares $dP_{ij}$ with the row's mean of $dP$, weighted by $P$. It needs no row of
# $P$, for $\sum_j p_{ij}\, dO_i \cdot v_j = dO_i \cdot o_i$:
#
# $$D_i = \textstyle\sum_j p_{ij}\, dP_{ij} = dO_i \cdot o_i$$
# ascii: D_i = sum_j p_ij dP_ij = dO_i . o_i
#
# **In turn.** A block that takes *keys* forms $P$ once, but all blocks add to $dQ$. By
# `atomicAdd` the first to come adds first, and rounding makes two runs differ. The
# library's blocks for 16 bits add in one order, each in its turn. What a block waits
# for must have started: so it draws its keys as a **ticket**, and waits for lower ones.
# %% gradients
p_row, dp_row = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 0.0, 2.0])
mean = (p_row * dp_row).sum()  # D: 0.5 + 0.4
ds_row = p_row * (dp_row - mean)
print(f"three keys: D {mean:.1f}, dS", [round(ds.item(), 2) for ds in ds_row])
s_row = p_row.log().requires_grad_()  # scores with these weights
assert torch.allclose(torch.autograd.grad(s_row.softmax(0) @ dp_row, s_row)[0], ds_row)
T = 64
q, k, v, dO = torch.randn(4, 1, 1, T, d)
parts = [x.requires_grad_() for x in (q, k, v)]
with kernels.profile() as forward:
    out = kernels.flash_attention(*parts, causal=True, backend="simt")
with kernels.profile() as backward:
    ours = torch.autograd.grad(out, parts, dO)
tiles = (forward.global_load.lanes - T * d) // (2 * 16 * d)  # keys and values of a tile
stored = backward.global_store.lanes
print(f"{tiles} of {4 * 4} tiles visited; the backward pass writes {stored} numbers")
assert tiles == 4 * 5 // 2 and stored == 3 * T * d + T  # dQ, dK, dV;  D

Q, K, V, dO = (x[0, 0].detach().double() for x in (*parts, dO))
S = Q @ K.T / math.sqrt(d) + torch.full((T, T), -math.inf).triu(1)  # causal
L = S.logsumexp(-1, keepdim=True)
P = (S - L).exp()
D = (dO * (P @ V)).sum(-1, keepdim=True)  # (T, 1), as L: taken from all of a row
dS = P * (dO @ V.T - D)
by_hand = dS @ K / math.sqrt(d), dS.T @ Q / math.sqrt(d), P.T @ dO
worst = max((a[0, 0] - b).abs().max() for a, b in zip(ours, by_hand, strict=True))
print(f"gradients differ from the formulas in float64 by at most {worst:.0e}")
assert worst < 1e-5 and not forward.findings + backward.findings
# %% in_turn
atomic = kernels.CudaSource("""
__global__ void add_up(const float* dS, const float* K, float* dQ, int T) {
  const int first = 16 * blockIdx.x, c = threadIdx.x;  // of 16 keys; a column
  for (int i = 0; i < T; ++i)
    for (int j = first; j < first + 16; ++j)
      atomicAdd(&dQ[i * 32 + c], dS[i * T + j] * K[j * 32 + c]);
}
extern "C" void run(const float* dS, const float* K, float* dQ, int T) {
  LAUNCH((add_up), T / 16, 32, 0, nullptr)(dS, K, dQ, T);
}""", name="add_up.cu")
halves = [torch.randn(1, 1, 160, d).bfloat16().requires_grad_() for _ in "qkv"]
by_atomics, in_turn = set(), set()
for order in ("forward", "reverse", "shuffle:1"):
    dQ = torch.zeros(T, d)
    with kernels.schedule(order):
        atomic.run(dS.float(), K.float(), dQ, T)
        out = kernels.flash_attention(*halves, backend="simt")
        dq = torch.autograd.grad(out.sum(), halves[0])[0]
    by_atomics.add(dQ.numpy().tobytes()), in_turn.add(dq.float().numpy().tobytes())
print(f"3 orders: {len(by_atomics)} results by atomicAdd, {len(in_turn)} in turn")
assert len(by_atomics) == 3 and len(in_turn) == 1
# %% [markdown] exercise
# **Exercise.** Many processors may share one query, each with keys of its own. Combine
# their results. Count the tiles of any shape. Then write the online softmax as a
# kernel, a warp for each query.
#
# Open `lessons/exercises/ex34_flash_attention.py` and `ex34_flash_attention.cu`, then
# run `python3 run.py check 34`.
# %% you_should_see
gigabytes, megabytes = 32 * 4096 ** 2 * 4 / 1e9, 32 * 4096 * 128 * 4 / 1e6
print(f"You should see: {many:.0f} KB written with S and {few:.0f} KB without at 512 "
      f"tokens,\n{tiles} of 16 tiles visited; S would take {gigabytes:.1f} GB, the "
      f"result {megabytes:.0f} MB.")
assert (round(many), round(few)) == (1114, 72) and tiles == 10
assert (round(gigabytes, 1), round(megabytes)) == (2.1, 67)
