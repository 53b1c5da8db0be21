# %% [markdown] question
# # 39 · Tensor cores
# Covers: `csrc/simt/tensor.h`, `csrc/cuda/flash_fragments.cuh`, `csrc/cuda/nf4_tensor_cores.cuh`
# Needs: 29, 30, 31, 33, 34
# Time: 40 s
# Teaches: mma.sync, fragments, ldmatrix, XOR swizzle, cp.async, double buffering, wgmma, TMA, mbarrier
# Paper: [PTX ISA](https://docs.nvidia.com/cuda/parallel-thread-execution/), section 9.7.14
#
# **Question.** In bf16 an A100 does 312 TFLOP a second; in fp32, with ordinary
# multiply-adds, 19.5. The difference is one instruction, by which a warp multiplies
# two small matrices. What must its 32 lanes bring, and what keeps them from being
# late?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $A$, $B$ | `A`, `B` | (16, 16), (16, 8) | what is multiplied, in bf16 |
# | $C$ | `C` | (16, 8) | what is added to: $C + A B$, in fp32 |
# | $L$ | `threadIdx.x` | | number of a lane, 0 to 31 |
# | $g$, $t$ | `g`, `t` | | lane $L$ is number $t$ of group $g$: $L = 4 g + t$ |
# | $r$, $c$ | `row`, `chunk` | | row of a tile; 8 neighbours of a row, 16 bytes |
# %% naive
import torch

from lessons import profile_pictures
from minillama import kernels
from minillama.plots import show
from minillama.quant.nf4 import quantize_nf4

ONE = """#define PAIR(X, row, column) *(const unsigned*)(X + (row) * 16 + (column))
using bf16 = __nv_bfloat16;
__global__ void by_fma(const bf16* A, const bf16* B, float* C) {  // 4 results a lane
  for (int i = threadIdx.x; i < 128; i += 32) {
    float sum = 0;
    const bf16 *a = A + i / 8 * 16, *b = B + i % 8 * 16;
    for (int k = 0; k < 16; ++k) sum += float(a[k]) * float(b[k]);
    C[i] = sum;
  }
}
__global__ void by_mma(const bf16* A, const bf16* B, float* C) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const unsigned a[4] = {PAIR(A, g, 2 * t), PAIR(A, g + 8, 2 * t),
                         PAIR(A, g, 2 * t + 8), PAIR(A, g + 8, 2 * t + 8)};
  const unsigned b[2] = {PAIR(B, g, 2 * t), PAIR(B, g, 2 * t + 8)};
  float c[4] = {};
  mma_bf16_16816(c, a, b);
  *(float2*)(C + g * 8 + 2 * t) = {c[0], c[1]};
  *(float2*)(C + (g + 8) * 8 + 2 * t) = {c[2], c[3]};
}
extern "C" void run(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int mma) {
  LAUNCH((mma ? by_mma : by_fma), 1, 32, 0, nullptr)(A, B, C);
}"""
# %% [markdown] formula
# `by_fma` is what we know. Each lane makes 4 results of 16 products: 64 multiply-adds,
# and two loads for each. `by_mma` says the same by `mma.sync`, the instruction of the
# **tensor cores**: 16 rows, 8 columns, sums of 16, which is $2 \cdot 16 \cdot 8 \cdot
# 16 = 4096$ FLOPs at once. (In both, the columns of $B$ lie in memory as rows, as the
# keys do in attention.)
#
# No lane has a matrix. Each holds a **fragment** in its registers: 8 numbers of $A$, 4
# of $B$, 4 of $C$. Which ones, the instruction dictates:
#
# $$A:\ \mathrm{rows}\ g,\ g + 8,\ \mathrm{columns}\ 2t,\ 2t + 1,\ 2t + 8,\ 2t + 9$$
# ascii: A: rows g, g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9
#
# $$B:\ \mathrm{rows}\ 2t,\ 2t + 1,\ 2t + 8,\ 2t + 9,\ \mathrm{column}\ g$$
# ascii: B: rows 2t, 2t + 1, 2t + 8, 2t + 9, column g
#
# $$C:\ \mathrm{rows}\ g,\ g + 8,\ \mathrm{columns}\ 2t,\ 2t + 1$$
# ascii: C: rows g, g + 8, columns 2t, 2t + 1
#
# Two bf16 neighbours share a register, so `PAIR` loads them as one word. The emulator
# checks the result, and its profiler knows which lane asked for which byte. From that
# it draws the picture.
# %% fragments
lab, loads = kernels.CudaSource(ONE, name="one.cu"), []
torch.manual_seed(0)
(A, B), C = torch.randn(24, 16).bfloat16().split((16, 8)), torch.zeros(16, 8)
for mma in (0, 1):
    with kernels.profile(lab) as p:
        lab.run(A, B, C.zero_(), mma)
    assert (C - A.float() @ B.float().T).abs().max() < 1e-5 and p.mma == mma
    loads.append(p.global_load.requests)
print(f"requests for numbers: {loads[0]} by multiply-adds, {loads[1]} by mma.sync")
assert loads == [2 * 64, 4 + 2]


def lanes_of(mark, columns, size):
    """{(row, column): lane} of all numbers that lines with this mark load or store."""
    lines = [n for n, line in enumerate(ONE.splitlines(), 1) if mark in line]
    return {divmod(byte // size, columns): lane for access in p.accesses
            if access.line in lines for lane, start in enumerate(access.offsets)
            for byte in range(start, start + access.width, size)}


held = lanes_of("PAIR(A, ", 16, 2), lanes_of("PAIR(B, ", 16, 2), lanes_of("(C + ", 8, 4)
assert [len(matrix) for matrix in held] == [256, 128, 128]  # each number has one lane
assert all(L == 4 * (r % 8) + c % 8 // 2 for (r, c), L in held[0].items())
show(profile_pictures.fragments("Lane 5 holds the orange numbers", *held, lane=5),
     "Lane 5 is t = 1 of group 1: rows 1 and 9, columns 2, 3, 10, 11 of A")
# %% [markdown] ldmatrix
# **How do they come there?** A tile lies in shared memory, 64 columns of bf16 in a row:
# 128 bytes, all 32 banks (lesson 30). `ldmatrix` loads four 8 x 8 matrices in one
# instruction: lane $8j + i$ names row $i$ of matrix $j$, 16 bytes, and the hardware
# deals them out as fragments. It serves one matrix at a time. But 16 bytes at one place
# of 8 such rows lie in the *same* four banks.
#
# Padding (lesson 30) would help. Kernels do it without a wasted byte, by a **swizzle**:
# chunk $c$ of row $r$ lies at another place of that row,
#
# $$c' = c \oplus (r \bmod 8)$$
# ascii: c' = c xor (r mod 8)
#
# The exclusive or $\oplus$ of different $r$ gives different $c'$: eight rows, eight
# places, 32 banks. Writing a row still fills all 32 banks.
# %% tiles
TILES = """
using bf16 = __nv_bfloat16;
template <int swizzle, int stages, int left>
__global__ void product(const bf16* x, const bf16* w, float* y, int K) {
  __shared__ __align__(128) bf16 X[stages][4096], W[stages][4096];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto place = [](int row, int chunk) {
    return row * 64 + (swizzle ? chunk ^ row % 8 : chunk) * 8;
  };
  auto copy = [&](int k) {  // 64 rows of 64 columns of x and w, 16 bytes at a time
    for (int i = threadIdx.x; i < 512; i += 128) {
      const int to = place(i / 8, i % 8), from = i / 8 * K + k + i % 8 * 8;
      cp_async<16>(X[k / 64 % stages] + to, x + from);
      cp_async<16>(W[k / 64 % stages] + to, w + from);
    }
    cp_async_commit();
  };
  float c[8][4] = {};
  copy(0);
  for (int k = 0; k < K; k += 64) {
    cp_async_wait<left>();  // all groups of copies have come, but for so many
    __syncthreads();
    if (stages == 2 && k + 64 < K) copy(k + 64);
"""
# %% loop
TILES += """
    const auto *x_tile = X[k / 64 % stages], *w_tile = W[k / 64 % stages];
    for (int i = 0; i < 4; ++i) {  // 16 columns at a time
      unsigned a[4], b[4];
      ldmatrix_x4(a, x_tile + place(16 * warp + lane % 16, 2 * i + lane / 16));
      for (int n = 0; n < 8; n += 2) {
        const int row = 8 * n + lane % 8 + lane / 16 * 8;
        ldmatrix_x4(b, w_tile + place(row, 2 * i + lane / 8 % 2));
        const unsigned left_b[2] = {b[0], b[1]}, right_b[2] = {b[2], b[3]};
        mma_bf16_16816(c[n], a, left_b);
        mma_bf16_16816(c[n + 1], a, right_b);
      }
    }
    if (stages == 2 || k + 64 >= K) continue;
    __syncthreads();  // the only stage is read by all
    copy(k + 64);
  }
  for (int i = 0; i < 32; ++i) {
    const int row = 16 * warp + lane / 4 + i / 2 % 2 * 8;
    y[row * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = c[i / 4][i % 4];
  }
}
extern "C" void run(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int K,
                    int version) {
  decltype(&product<0, 1, 0>) versions[] = {product<0, 1, 0>, product<1, 1, 0>,
                                            product<1, 2, 0>, product<1, 2, 1>};
  LAUNCH((versions[version]), 1, 128, 0, nullptr)(x, w, y, K);
}"""
# %% banks
lab, K = kernels.CudaSource(TILES, name="tiles.cu"), 256
x, w = torch.randn(2, 64, K).bfloat16()
runs = []
for version in range(4):
    y = torch.zeros(64, 64)
    with kernels.profile(lab) as p:
        lab.run(x, w, y, K, version)
    assert bool(p.findings) == (version == 3)
    assert version == 3 or (y - x.float() @ w.float().T).abs().max() < 1e-3
    assert 4096 * p.mma == 2 * 64 * 64 * K  # every FLOP of the product, by mma.sync
    runs.append(p)
waits = [p.shared_load.wavefronts / p.mma for p in runs]
print(f"wavefronts of shared memory for a product: {waits[0]} as it lies, "
      f"{waits[1]} swizzled")
assert waits == [20, 2.5, 2.5, 2.5] and runs[0].shared_load.conflicts > 0
assert all(p.total("shared").conflicts == 0 for p in runs[1:])
show(profile_pictures.matrix_banks("A swizzle spreads 8 rows over all 32 banks", {
    "as it lies": runs[0], "swizzled": runs[1]}),
    f"{waits[0]:g} wavefronts a product as the tile lies, {waits[1]} swizzled")
# %% [markdown] budget
# A **wavefront** is a turn of shared memory, 128 bytes at best. How many may one
# `mma.sync` take? An A100 has 108 processors (SMs) at 1.41 GHz, so one does 2,048 FLOPs
# in a turn of its clock: a product in 2. Shared memory has one wavefront in each. Hence
# a budget of 2, and 20 are far beyond it. The fragment of $A$ already serves 8
# products. Keep more in registers, and 2.5 falls further: flash attention loads its
# queries only once.
#
# **Who waits for global memory?** A load would go through registers, and stop the warp
# when it wants them. `cp.async` copies 16 bytes to shared memory on its own, while the
# warp goes on. Copies are committed in groups; `cp.async.wait_group n` waits until at
# most $n$ groups are under way; a barrier then tells all threads. With one tile in
# shared memory, the next copy cannot begin before the last read. With two, it runs
# *while* this tile is multiplied: **double buffering**, and one barrier a tile instead
# of two. The order of the first warp's requests shows it.
# %% pipeline
order = {}
for name, p in (("one stage", runs[1]), ("two stages", runs[2])):
    kind = {a.site: a.op for a in p.accesses if a.space == "shared"}
    requests = next(iter(p.kernels.values()))["timeline"]
    order[name] = "".join({"store": "c", "load": "r"}[kind[site]]
                          for site, _ in requests if site in kind)
assert order["one stage"] == K // 64 * (8 * "c" + 20 * "r")
assert order["two stages"] == 8 * "c" + 3 * (8 * "c" + 20 * "r") + 20 * "r"
assert [p.barriers for p in runs[1:3]] == [2 * K // 64 - 1, K // 64]
title = "With two stages the next tile is on its way"
show(profile_pictures.stages(title, order, copies=8, reads=20),
     "With two stages tile 2 is asked for before the 20 reads of tile 1, not after")
print(f"waiting for one group too few: {runs[3].findings[0]}")

q, k, v = (torch.randn(1, heads, 128, 64).bfloat16() for heads in (2, 1, 1))
weight, rows = quantize_nf4(torch.randn(128, 256), 64, False), torch.randn(128, 256)
fed = {}
for name, run, flops in (("flash attention", lambda: kernels.flash_attention(
        q, k, v, False, backend="simt"), 4 * 2 * 128 * 128 * 64), ("NF4", lambda:
        kernels.nf4_matmul(rows.bfloat16(), weight, "simt"), 2 * 128 * 128 * 256)):
    with kernels.profile() as p:
        run()
    assert not p.findings and p.shared_load.conflicts == 0 and 4096 * p.mma == flops
    fed[name] = round(p.shared_load.wavefronts / p.mma, 2)
    print(f"{name}: {p.mma} products, all its FLOPs; for one {fed[name]} wavefronts")
# %% [markdown] exercise
# In both kernels *all* products run on tensor cores. NF4 needs no `ldmatrix`: a sum may
# go in any order of $k$, so its kernel takes the order in which one lane's columns are
# neighbours, and a plain 16-byte load fills a fragment.
#
# **The step beyond.** Hopper GPUs still run all this, but their own instructions do
# more. `wgmma` lets four warps multiply 64 rows together, and reads $B$ (even $A$) from
# shared memory without registers. With **TMA** one thread asks for a whole tile, and
# hardware computes addresses and swizzle. An `mbarrier` counts bytes that have arrived,
# so some warps may just copy, others just multiply. With these, flash attention rose
# from 35 % of an H100's peak to 75 % ([Shah et al.
# 2024](https://arxiv.org/abs/2407.08608)). Our kernels do not use them yet.
#
# **Exercise.** Find a number's lane and register. Swizzle rows of only 64 bytes. Then
# write the kernel: a matrix product of any shape, on tensor cores, in two stages.
#
# Open `lessons/exercises/ex39_tensor_cores.py` and `ex39_tensor_cores.cu`, then run
# `python3 run.py check 39`.
# %% you_should_see
in_a_turn = 312e12 / 108 / 1.41e9
print(f"You should see: {waits[0]:g} wavefronts a product, {waits[1]} swizzled; all "
      f"FLOPs of our kernels\nby mma.sync, with {fed['flash attention']} and "
      f"{fed['NF4']}; an A100 does {in_a_turn:.0f} FLOPs in a turn.")
assert round(in_a_turn, -1) == 2050
