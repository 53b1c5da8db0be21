# %% [markdown] question
# # 33 · A product with 4-bit weights
# Covers: `csrc/cuda/nf4_matmul.cuh`, `csrc/cuda/nf4_vectors.cuh`, `tests/quant/test_nf4_kernel.py`
# Needs: 23, 30, 31, 32
# Time: 30 s
# Teaches: dequantization inside a kernel, fusion, compulsory bytes, table in shared memory, one scale per block
# Paper: [Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), equations 5 and 6
#
# **Question.** In NF4 (lesson 23) a weight takes half a byte. But nobody can multiply
# by half a byte: it has to become a number first. Where should that happen, so that the
# product gets faster with small weights?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $M$ | `M` | | tokens: rows of $x$ |
# | $N$, $K$ | `N`, `K` | | outputs and inputs of the layer |
# | $x$, $y$ | `x`, `y` | (M, K), (M, N) | what goes in and comes out: $y = x W^T$ |
# | $W$ | `W` | (N, K) | the weights as numbers |
# | $c_{nk}$ | `codes` | (N K / 2,) | code of a weight, 0 to 15, two to a byte |
# | $q_c$ | `level` | (16,) | the number in [-1, 1] that code $c$ stands for |
# | $s_b$ | `absmax` | (N K / 64,) | scale of block $b$: 64 weights side by side |
#
# One weight is $W_{nk} = q_c \, s_b$, with $c$ its code and $b$ its block.
# %% naive
import torch

from minillama import kernels
from minillama.plots import CONTEXT, CONTRAST, OURS, bars, show
from minillama.quant.nf4 import NF4_LEVELS, quantize_nf4

naive = kernels.CudaSource("""
__global__ void dequantize(const uint8_t* codes, const float* absmax,
                           const float* level, __nv_bfloat16* W) {
  const int i = blockIdx.x * 64 + threadIdx.x;  // a thread for each byte: two weights
  W[2 * i] = __nv_bfloat16(level[codes[i] >> 4] * absmax[i / 32]);
  W[2 * i + 1] = __nv_bfloat16(level[codes[i] & 15] * absmax[i / 32]);
}
__global__ void multiply(const float* x, const __nv_bfloat16* W, float* y, int K) {
  const int n = blockIdx.x * 64 + threadIdx.x;  // a thread for each output
  float sum = 0;
  for (int k = 0; k < K; ++k) sum += x[k] * float(W[n * K + k]);
  y[n] = sum;
}
extern "C" void first(const uint8_t* codes, const float* absmax, const float* level,
                      __nv_bfloat16* W, int N, int K) {
  LAUNCH((dequantize), N * K / 128, 64, 0, nullptr)(codes, absmax, level, W);
}
extern "C" void second(const float* x, const __nv_bfloat16* W, float* y, int N, int K) {
  LAUNCH((multiply), N / 64, 64, 0, nullptr)(x, W, y, K);
}""", name="two_kernels.cu")
# %% two_steps
torch.manual_seed(0)
N, K, level = 512, 512, torch.tensor(NF4_LEVELS)
stored = quantize_nf4(torch.randn(N, K), double_quantization=False)
x, y, W = torch.randn(1, K), torch.zeros(1, N), torch.zeros(N, K).bfloat16()  # M = 1


def touched(p):
    """Bytes that a launch must read and write at least: each one once."""
    assert not p.findings
    return p.global_load.compulsory + p.global_store.compulsory


with kernels.profile(naive) as p:
    naive.first(stored.codes, stored.absmax, level, W, N, K)
dequantized = touched(p) - 4 * 16  # without the table
with kernels.profile(naive) as p:
    naive.second(x, W, y, N, K)
multiplied = touched(p) - 4 * (K + N)  # without x and y
exact = x.double() @ stored.dequantize().double().T
of_naive = (y - exact).abs().max().item()
print(f"to dequantize moves {dequantized / (N * K):.4f} bytes a weight, to multiply "
      f"{multiplied / (N * K):.4f}; largest error {of_naive:.2f}")
assert dequantized == N * K // 2 + 4 * N * K // 64 + 2 * N * K  # codes, scales; W
assert multiplied == 2 * N * K and 0.01 < of_naive < 0.3
# %% [markdown] formula
# That was a bad bargain. Weights kept in bf16 move 2 bytes each. Ours moved 4.56: they
# were read as codes, written as bf16, and read again. (Each launch counts a byte once,
# as if a cache caught every repeat.) Small at rest, they are larger than ever at work.
# And in the product of one token each weight is used only once, for two operations:
# bytes decide (lesson 32). Besides, rounding $W$ to bf16 cost accuracy.
#
# So $W$ must never be written. A thread that needs $W_{nk}$ looks it up, uses it, and
# forgets it. And it need not multiply each level by the scale: within a block the scale
# is the same, and can wait until the block's sum is there.
#
# $$y_{mn} = \sum_b s_b \sum_{k \in b} x_{mk} \, q_{c_{nk}}$$
# ascii: y_mn = sum over blocks b of s_b * (sum over k in b of x_mk * q[c_nk])
#
# Here $b$ runs over the blocks of row $n$. This is the library's kernel, fused: one
# launch, and the codes are only read. It takes double quantization too: there a block
# has a code of 8 bits for its scale, and 256 blocks share one number in fp32.
# %% library
for M, N_odd, K_odd in ((1, 1, 1), (3, 33, 65), (2, 70, 127)):  # blocks cross the rows
    for double in (False, True):
        odd = quantize_nf4(torch.randn(N_odd, K_odd), double_quantization=double)
        x_odd = torch.randn(M, K_odd)
        wanted = x_odd.double() @ odd.dequantize().double().T
        ours = kernels.nf4_matmul(x_odd, odd, backend="simt")
        assert (ours - wanted).abs().max() < 2e-5

twice = quantize_nf4(stored.dequantize())  # double quantization
moved, seen = {}, {}
for name, weights in (("fused", stored), ("fused, double", twice)):
    with kernels.profile() as p:
        ours = kernels.nf4_matmul(x, weights, backend="simt")
    moved[name], seen[name] = touched(p) - 4 * (K + N), p
    assert moved[name] == weights.stored_bytes()  # each byte of the file, once
    error = (ours - x.double() @ weights.dequantize().double().T).abs().max()
    print(f"{name}: {moved[name] / (N * K):.4f} bytes a weight; error {error:.0e}")
    assert error < 1e-4  # sums and weights are fp32: nothing is rounded to bf16
# %% figure
rows = [("bf16 weights", multiplied / (N * K), CONTEXT),
        ("NF4, W written", (dequantized + multiplied) / (N * K), CONTRAST),
        *((f"NF4, {name}", bytes_ / (N * K), OURS) for name, bytes_ in moved.items())]
picture = bars("Dequantized first, NF4 moves more than bf16", rows,
               "bytes that move for each weight, one token")
each = [value for _, value, _ in rows]
show(picture, f"bf16 {each[0]:.2f} bytes a weight, dequantized first {each[1]:.2f}, "
              f"fused {each[2]:.2f}, with double quantization {each[3]:.2f}")
sizes = 2, 1 / 2, 4 / 64, 1 / 64 + 4 / 64 / 256  # bytes a weight
wide, codes, scales, double_scales = (round(n * 4096 ** 2 / 1e6, 2) for n in sizes)
print(f"4096 x 4096: codes {codes} MB, scales {scales} MB, doubly quantized "
      f"{double_scales} MB; in bf16 {wide} MB")
assert (wide, codes, scales, double_scales) == (33.55, 8.39, 1.05, 0.27)
# %% [markdown] table
# **Where does the table live?** Each of 32 lanes looks up another of the 16 levels, at
# the same time. Registers have no run-time index. Constant memory serves one address at
# a time. Global memory would cost a request for each weight. So every block of threads
# copies the 16 levels into its shared memory first: 64 bytes, in 16 different banks.
# Two lanes want either different banks or the same word, and neither makes a conflict.
#
# **Who reads what?** The first version takes any shape: a thread
# has one output $n$, and walks along its row. Neighbouring threads then read codes that
# lie $K / 2$ bytes apart. The second wants rows of whole vectors ($K$ a multiple of
# 32): a lane reads 16 bytes of codes at once, 32 weights of one output, and its
# neighbour the next 16. At the end the lanes of a warp add up what they have. (A third,
# for 16-bit numbers and 8 tokens or more, multiplies on tensor cores: lesson 39.) Let
# us count the requests for codes in the first two.
#
# And in the gradient: in training, that of $x$ is made from that of $y$,
# $dx = dy \, W$. There neighbours have neighbouring *inputs* $k$, and read neighbouring
# codes anyway.
# %% requests
unfit = quantize_nf4(torch.randn(N, K + 4), double_quantization=False)
dy, asked = torch.randn(1, N), {}
runs = {"version 1": lambda: kernels.nf4_matmul(torch.randn(1, K + 4), unfit, "simt"),
        "version 2": lambda: kernels.nf4_matmul(x, stored, "simt"),
        "gradient": lambda: kernels.nf4_matmul_backward(dy, stored, "simt")}
for name, run in runs.items():
    with kernels.profile() as p:
        result = run()
    bytes_of_codes = N * (K + 4 if name == "version 1" else K) // 2
    codes_read = next(a for a in p.accesses if a.counts.compulsory == bytes_of_codes)
    asked[name] = 32 * codes_read.counts.sectors / bytes_of_codes
    print(f"{name}: {codes_read.width} bytes of codes a lane, sectors in a request: "
          f"{codes_read.counts.sectors_per_request:.1f}; each is asked for "
          f"{asked[name]:.0f} times")
    assert p.shared_load.conflicts == 0
assert (result - dy.double() @ stored.dequantize().double()).abs().max() < 1e-4
assert 62 < asked["version 1"] < 67 and asked["version 2"] == asked["gradient"] == 1
# %% tokens
looked_up = {}
for name, columns in (("version 1", 1028), ("version 2", 1024)):
    weights = quantize_nf4(torch.randn(64, columns), double_quantization=False)
    with kernels.profile() as p:
        kernels.nf4_matmul(torch.randn(8, columns), weights, "simt")
    # a look-up is a load of one number, 4 bytes, from shared memory
    found = sum(a.counts.lanes for a in p.accesses
                if (a.space, a.op, a.width) == ("shared", "load", 4))
    looked_up[name] = found / 64 / columns
    print(f"{name}: 8 tokens look up each weight {looked_up[name]:.0f} times")
assert looked_up == {"version 1": 8, "version 2": 1}
# %% [markdown] exercise
# Version 1 asks for every sector some 64 times: once for each of the 64 codes in it. A
# cache may catch most of that, but each request still touches 32 sectors. And with $M$
# tokens it looks up every weight $M$ times. Version 2 asks once, and what a lane has
# looked up serves 8 tokens. Both count for speed: a GPU has only a handful of
# instructions for each weight before its memory has brought the next.
#
# **Exercise.** Count the bytes of any weight. Find one weight among the codes. Then
# write such a kernel, a plain one: a warp for each output, one token. The emulator
# counts what it reads.
#
# Open `lessons/exercises/ex33_dequant_matmul.py` and `ex33_dequant_matmul.cu`, then
# run `python3 run.py check 33`.
# %% you_should_see
print(f"You should see: {each[0]:.2f} bytes a weight in bf16, {each[1]:.2f} if W is "
      f"written, {each[2]:.2f} fused,\n{each[3]:.2f} with double quantization; codes "
      f"asked for {asked['version 1']:.0f} times by version 1, once by version 2.")
assert [round(value, 2) for value in each] == [2.0, 4.56, 0.56, 0.52]
