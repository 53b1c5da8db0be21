# %% [markdown] question
# # 35 · Kernels for CPUs
# Covers: `csrc/cpu/vectors.cpp`, `csrc/cpu/nf4_matmul.cpp`, `csrc/cpu/rope.cpp`
# Needs: 23, 33
# Time: 25 s
# Teaches: vector loops, sums in registers, panels, blocking for the cache, threads, binding, autograd.Function
# Paper: [Goto and van de Geijn 2008](https://doi.org/10.1145/1356052.1356053)
#
# **Question.** A GPU is fast by thousands of threads. An ordinary CPU runs a few, but
# each of them can do much at once. How do we get the most out of them?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $M$, $N$, $K$ | `M`, `N`, `K` | | tokens; outputs and inputs of a layer |
# | $x$, $y$ | `x`, `y` | (M, K), (M, N) | what goes in and comes out: $y = x W^T$ |
# | $W$ | `W` | (N, K) | weights |
# | $r$ | `rows` | | rows of $W$ that are worked on together |
# | $v$ | `vectors` | | vectors of tokens that are worked on together |
#
# A **vector** is a register that holds several numbers, here 16, which one instruction
# adds or multiplies all at once. It plays the part of a warp (lesson 29).
# %% naive
import ctypes
import time
from pathlib import Path

import torch

from minillama import kernels
from minillama.plots import CONTRAST, ORACLE, OURS, bars, show
from minillama.quant.nf4 import quantize_nf4
from minillama.rope import apply_rope, rope_frequencies, rope_rotations

naive = """
extern "C" void naive(const float* x, const float* W, float* y, int M, int N, int K) {
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float sum = 0;
      for (int k = 0; k < K; ++k) sum = __builtin_fmaf(x[m * K + k], W[n * K + k], sum);
      y[m * N + n] = sum;
    }
}
"""
# %% [markdown] vectors
# `fmaf(a, b, sum)` is `a * b + sum` in one instruction. Why is this loop slow?
# Each step must wait for the sum of the step before: some four ticks of the clock. And
# the compiler may not cut the sum into 16 parts for us, because other orders of
# addition give other bits.
#
# So do not cut a sum. Take many *different* sums. A vector of 16 tokens has 16 sums,
# and each is added up in its old order. With $r$ rows of $W$ and $v$ vectors of tokens,
# $r v$ vectors of sums stay in registers, and wait for nobody: when the last is done,
# the first is ready again. A loaded vector serves $r$ rows, a loaded weight $v$
# vectors. So one multiplication of a vector needs this many loads:
#
# $$\mathrm{loads} = \frac{r + v}{r\,v}$$
# ascii: loads = (r + v) / (r v)
#
# The 16 tokens of a vector must be neighbours in memory. We lay $x$ out in **panels**:
# $16 v$ tokens each, and in one for each $k$ their numbers side by side. Then a panel
# is read from its beginning to its end.
# %% tiled
tiled = """
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));

template <int rows, int vectors>
void tiled(const float* panels, const float* W, float* yT, int M, int N, int K,
           int threads) {
#pragma omp parallel for num_threads(threads)
  for (int m = 0; m < M; m += 16 * vectors)
    for (int n = 0; n < N; n += rows) {
      const float* panel = panels + m * K;
      Vector sum[rows][vectors] = {}, b[vectors];
      for (int k = 0; k < K; ++k, panel += 16 * vectors) {
        for (int v = 0; v < vectors; ++v) b[v] = *(const Vector*)(panel + 16 * v);
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < vectors; ++v) sum[r][v] += W[(n + r) * K + k] * b[v];
      }
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
          *(Vector*)(yT + (n + r) * M + m + 16 * v) = sum[r][v];
    }
}
"""
# %% build
names = """
extern "C" void tiled_1x1(float* p, float* W, float* yT, int M, int N, int K, int t) {
  tiled<1, 1>(p, W, yT, M, N, K, t);
}
extern "C" void tiled_6x4(float* p, float* W, float* yT, int M, int N, int K, int t) {
  tiled<6, 4>(p, W, yT, M, N, K, t);
}
"""
path = Path("out/lessons/product.cpp")
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(naive + tiled + names)
built = kernels.load_source("lesson_35", [path], ("-O3", "-march=native"), False)
lab = ctypes.CDLL(built)


def product(x, W, kernel="tiled_6x4", threads=1):
    """x W^T, and the seconds it took; M a multiple of 64, N of 6."""
    (M, K), N = x.shape, len(W)
    width = 16 * int(kernel[-1]) if kernel != "naive" else M
    panels = x.reshape(-1, width, K).transpose(1, 2) if kernel != "naive" else x
    panels, W, yT = panels.contiguous(), W.contiguous(), torch.empty(N, M)
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (panels, W, yT)]
    start = time.perf_counter()
    getattr(lab, kernel)(*addresses, M, N, K, *[threads] * (kernel != "naive"))
    took = time.perf_counter() - start
    return yT.view(M, N) if kernel == "naive" else yT.T, took
# %% versions
torch.manual_seed(0)
size = 384
x, W = torch.randn(2, size, size)
wanted = x.double() @ W.double().T
of_naive, speed = product(x, W, "naive")[0], {}
print("kernel     threads  loads  error")
versions = (("naive", 1, ""), ("tiled_1x1", 1, (1 + 1) / (1 * 1)),
            ("tiled_6x4", 1, (6 + 4) / (6 * 4)), ("tiled_6x4", 2, (6 + 4) / (6 * 4)))
for kernel, threads, loads in versions:
    results = [product(x, W, kernel, threads) for _ in range(9)]
    assert all(torch.equal(y, of_naive) for y, _ in results)  # bit for bit
    error = (results[0][0] - wanted).abs().max().item()
    print(f"{kernel:11}{threads:7}  {loads:<5.4}  {error:.0e}")
    assert error < 2e-4  # 384 numbers, added one after another in fp32
    name = f"{kernel}, {threads} thread{'s' * (threads > 1)}"
    speed[name] = 2 * size**3 / min(took for _, took in results) / 1e9
# %% figure
torch.set_num_threads(1)


def by_torch():
    start = time.perf_counter()
    x @ W.T
    return time.perf_counter() - start


speed["torch, 1 thread"] = 2 * size**3 / min(by_torch() for _ in range(9)) / 1e9
colours = CONTRAST, OURS, OURS, OURS, ORACLE
rows = [(*row, colour) for row, colour in zip(speed.items(), colours, strict=True)]
title = "Vectors help, and sums that stay in registers"
show(bars(title, rows, "billion additions and multiplications a second"),
     f"A multiplication of vectors needs 2 loads with one vector of sums, "
     f"{(6 + 4) / (6 * 4):.2f} with 6 x 4; all four kernels give the same bits")
# %% [markdown] library
# These speeds differ from machine to machine, and with what else it does. The bits do
# not. Threads divide the panels among them, never a sum. So neither vectors nor tiles
# nor threads change a result.
#
# The library's `vectors.cpp` has this loop for three kinds of CPUs, and takes the
# best that is there: with 32 registers $6 \times 4$ vectors of sums, with 16 only
# $6 \times 2$. After each 32 products it begins new sums, because many short sums lose
# less to rounding than a long one.
#
# `nf4_matmul.cpp` puts the decoding of lesson 33 in front. Weights of 48 rows and 64
# columns are decoded into a tile of 12 KiB. It fits into the nearest cache, and all
# tokens are multiplied with it there. To work on a piece as long as it is near is
# called **blocking**. (Up to 4 tokens leave vectors of 16 mostly empty. For them a row
# of $W$ is decoded and multiplied as it lies, in another order.)
#
# `rope.cpp` has nothing to use twice. It has to ask early: while it turns a head, it
# asks memory for the same head of the next token.
#
# **Binding.** We pass addresses and sizes, as C does. The library's operators know
# tensors: shapes are checked, and gradients known. Autograd learns a gradient from
# an `autograd.Function`. For $y = x W^T$ there are two, $dx = dy\, W$ and
# $dW = dy^T x$: products again.
# %% gradients
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return product(x, W)[0]

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        return product(dy, W.T)[0], product(dy.T, x.T)[0]


parts = [tensor.clone().requires_grad_() for tensor in (x, W)]
dy = torch.randn(size, size)
dx, dW = torch.autograd.grad(Product.apply(*parts), parts, dy)
assert (dx - dy.double() @ W.double()).abs().max() < 2e-4
assert (dW - dy.double().T @ x.double()).abs().max() < 2e-4
# %% agree
stored, results = quantize_nf4(W), []
exact = x.double() @ stored.dequantize().double().T
for threads in (1, 2):
    torch.set_num_threads(threads)
    results.append(kernels.nf4_matmul(x, stored, backend="cpu"))
error = (results[0] - exact).abs().max().item()
print(f"NF4: error {error:.0e}; with 2 threads the same bits")
assert error < 1e-4 and torch.equal(*results)
few, fewer = (kernels.nf4_matmul(x[:n], stored, backend="cpu") for n in (9, 5))
assert torch.equal(few[:5], fewer)  # 5 to 16 rows: bits depend on no neighbours
q = torch.randn(33, 4, 64).bfloat16()
rotations = rope_rotations(torch.arange(33), rope_frequencies(64))
turned = kernels.fused_rope(q, rotations, backend="cpu")
assert torch.equal(turned, apply_rope(q, rotations))  # both in fp32, rounded once
# %% [markdown] exercise
# **Exercise.** Lay rows out in panels. Count the loads of a tile. And find the best
# tile for a CPU with so many registers: why $6 \times 4$, why $6 \times 2$?
#
# Open `lessons/exercises/ex35_cpu_kernels.py`, then run `python3 run.py check 35`.
# %% you_should_see
print(f"You should see: {versions[1][2]:.2f} loads for a multiplication with one "
      f"vector of sums,\n{versions[2][2]:.2f} with 6 x 4; the same bits from every "
      "kernel.")
assert [round(loads, 2) for _, _, loads in versions[1:]] == [2.0, 0.42, 0.42]
assert torch.equal(product(x, W, threads=2)[0], of_naive)
