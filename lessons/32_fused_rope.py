# %% [markdown] question
# # 32 · Fused RoPE
# Covers: `csrc/cuda/rope.cuh`, `csrc/cuda/rope_vectors.cuh`, `tests/simt/test_simt_profile_rope.py`
# Needs: 07, 29, 30
# Time: 15 s
# Teaches: memory-bound kernels, compulsory bytes, vector loads, register reuse, shuffles, fusion, in-place operators
# Paper: [Su et al. 2021](https://arxiv.org/abs/2104.09864), equation 34
#
# **Question.** RoPE turns pairs of numbers: three operations a number. A GPU can do
# hundreds while it waits for one number from memory. So only the bytes count. How few
# can RoPE move, and how do we get there?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $T$ | `T` | | tokens |
# | $H$, $K$ | `H`, `K` | | heads of queries, heads of keys |
# | $d$ | `d` | | width of a head |
# | $e$ | `e` | | bytes of a number: 2, in bf16 |
# | $b$ | `least` | | bytes that a token must move at least |
# | $r$ | `ratio` | | bytes that were moved, over $b$ |
# %% naive
import torch

from minillama import kernels
from minillama.plots import CONTRAST, ORACLE, OURS, figure, show
from minillama.rope import apply_rope_qk, rope_frequencies, rope_rotations

torch.manual_seed(0)
T, H, K, d, e = 4, 32, 8, 128, 2
naive = kernels.CudaSource("""
__global__ void turn(const __nv_bfloat16* x, const float2* angle, __nv_bfloat16* y,
                     int heads, int half) {
  const int token = blockIdx.x;
  for (int i = threadIdx.x; i < heads * half; i += 128) {  // a thread for each pair
    const float2 a = angle[token * half + i % half];
    const int at = 2 * (token * heads * half + i);
    const float x0 = float(x[at]), x1 = float(x[at + 1]);
    y[at] = __nv_bfloat16(x0 * a.x - x1 * a.y);
    y[at + 1] = __nv_bfloat16(x1 * a.x + x0 * a.y);
  }
}
extern "C" void run(const __nv_bfloat16* x, const float* angle, __nv_bfloat16* y,
                    int tokens, int heads, int half) {
  LAUNCH((turn), tokens, 128, 0, nullptr)(x, (const float2*)angle, y, heads, half);
}""", name="naive_rope.cu")
q, k = (torch.randn(1, T, heads, d).bfloat16() for heads in (H, K))
rotations = rope_rotations(torch.arange(T), rope_frequencies(d))
table = torch.view_as_real(rotations).contiguous()  # (T, d/2, 2): cosine, sine
wanted = apply_rope_qk(q, k, rotations)
# %% [markdown] formula
# Every number of $q$ and $k$ must be read once and written once, and every angle's
# cosine and sine (fp32, $d/2$ pairs) read once. For one token:
#
# $$b = 2 e (H + K) d + 4 d$$
# ascii: b = 2 e (H + K) d + 4 d
#
# No kernel can do with less. That makes $b$ a ruler: count the bytes of all sectors
# that were asked for (lesson 30), divide by $T b$, and you have
#
# $$r = \frac{32 \cdot \mathrm{sectors}}{T\,b}$$
# ascii: r = 32 sectors / (T b)
#
# At $r = 1$ nothing is left to gain, on any GPU.
# %% count
least = 2 * e * (H + K) * d + 4 * d
turned = [torch.empty_like(x) for x in (q, k)]
with kernels.profile(naive) as p:
    for x, y in zip((q, k), turned, strict=True):  # two launches
        naive.run(x, table, y, T, x.shape[2], d // 2)
assert all((a.float() - b.float()).abs().max() < 0.04
           for a, b in zip(turned, wanted, strict=True)) and not p.findings
sectors = p.global_load.sectors + p.global_store.sectors
ratio = 32 * sectors / (T * least)
print(f"b = {least} bytes; the naive kernel moves {32 * sectors // T}: r = {ratio:.2f}")
assert (least, 32 * sectors // T) == (20992, 61440)
# %% [markdown] where
# Where do they go? The thread reads $x_0$, then $x_1$, its neighbour: two requests that
# touch the *same* sectors. The same with the two stores. So $q$ and $k$ move twice. And
# the angles of a token are fetched again for each of its 40 heads.
#
# (A cache may catch the second fetch. But requests cost slots in the memory system
# even then, and a cache that is busy with repeats holds less of what is needed.)
#
# The library keeps every version, one idea at a time:
#
# 1. **A thread a pair**, element by element: what we have just written.
# 2. **Two neighbours in one access.** A pair is one word of 4 bytes.
# 3. **16 bytes in one access**: four pairs a lane.
# 4. **A warp a token.** It reads the row of angles once, keeps it in registers while it
#    goes from head to head, and does $q$ and $k$ in one launch.
# %% versions
versions = kernels.CudaSource("""
#include "cuda/rope_vectors.cuh"
using namespace minillama::kernels;
using bf16 = __nv_bfloat16;
extern "C" void run(const __nv_bfloat16* q, const __nv_bfloat16* k, const float* table,
                    __nv_bfloat16* yq, __nv_bfloat16* yk, int T, int version) {
  const RopeRows Q = {{q, 0, 128, 4096}, yq, 0, 128, 4096, 32};  // strides, and heads
  const RopeRows K = {{k, 0, 128, 1024}, yk, 0, 128, 1024, 8};
  const RopeTable angles = {table, nullptr, T, 64, 0, 0};
  const RopeShape shape = {1, T, 128, true, false};
  if (version == 4) return rope(DType::bf16, Q, K, angles, shape, nullptr);
  rope_version(version, DType::bf16, q, table, yq, T, 32, 64, true, nullptr);
  rope_version(version, DType::bf16, k, table, yk, T, 8, 64, true, nullptr);
}""", name="versions.cu")
counted = {}
# %% counted
print("version  launches  stores  bytes of a token: q, k + angles     r")
for version in (1, 2, 3, 4):
    turned = [torch.empty_like(x) for x in (q, k)]
    with kernels.profile(versions) as p:
        versions.run(q, k, table, *turned, T, version)
    assert all((a.float() - b.float()).abs().max() < 0.04
               for a, b in zip(turned, wanted, strict=True)) and not p.findings
    written = 32 * p.global_store.sectors // T  # reading q and k goes as writing
    angles = 32 * p.global_load.sectors // T - written
    stores = p.global_store.requests // T
    launches = sum(one["launches"] for one in p.kernels.values())
    counted[version] = (2 * written, angles, stores)
    print(f"{version:7}{launches:10}{stores:8}{2 * written:20} + {angles:5}"
          f"{(2 * written + angles) / least:13.2f}")
assert [c[:2] for c in counted.values()] == [
    (40960, 20480), (20480, 20480), (20480, 20480), (20480, 512)]
assert [c[2] for c in counted.values()] == [160, 80, 20, 20]
# %% figure
title = "Version 4 moves each byte once"
picture, axes = figure(title, "version", "KB that a token moves")
for version, (of_x, of_angles, _) in counted.items():
    axes.bar(version, of_x / 1e3, color=OURS, width=0.6)
    axes.bar(version, of_angles / 1e3, bottom=of_x / 1e3, color=CONTRAST, width=0.6)
axes.axhline(least / 1e3, color=ORACLE, linestyle="--", linewidth=1.2)
least_kb = f"the least: {least / 1e3:.0f} KB"
axes.text(4.45, least / 1e3 + 1.5, least_kb, color=ORACLE, ha="right")
axes.text(1, 10, "q and k", color="white", ha="center", va="center")
axes.text(1, 51, "angles", color="white", ha="center", va="center")
axes.set(xticks=(1, 2, 3, 4), xlim=(0.5, 4.5))
ratios = [sum(c[:2]) / least for c in counted.values()]
ratios_text = ", ".join(f"{r:.2f}" for r in ratios)
show(picture, f"Moved over least in versions 1 to 4: {ratios_text}")
# %% [markdown] trade
# Version 3 moves no fewer bytes than version 2, but asks a quarter as often: a
# request of 32 lanes now carries 512 bytes. Version 4 then drops the angles.
#
# One difficulty hides in it. A lane with four pairs needs 32 bytes of angles. If each
# lane loaded its own, in two loads of 16 bytes, each load would jump over every other
# 16 bytes, and touch every sector. So each lane loads the *next* 16 bytes of the row,
# whosever they are: one request, every sector once. Then the lanes trade by shuffles
# (lesson 31): registers are read, no memory is.
#
# The operator gives more, at no byte more. **In place**, the result lies where
# the input was. **Into a cache**, the keys are written where they will be read. And the
# gradient is the same kernel, with the sine's sign changed: a turn back.
# %% operator
heads = [x.clone() for x in (q, k)]
kernels.fused_rope_qk(*heads, rotations, in_place=True, backend="simt")
assert all(torch.equal(a, b) for a, b in zip(heads, turned, strict=True))
cache = torch.zeros(1, K, 16, d).bfloat16()  # room for 16 tokens
rows = cache[:, :, 5:5 + T].transpose(1, 2)  # the tokens 5 to 8, as (1, T, K, d)
kernels.fused_rope_qk(q, k, rotations, out=(torch.empty_like(q), rows), backend="simt")
assert torch.equal(cache[:, :, 5:9].transpose(1, 2), turned[1])
assert not cache[:, :, :5].any() and not cache[:, :, 9:].any()
x = torch.randn(1, T, H, d, requires_grad=True)
y, _ = kernels.fused_rope_qk(x, x[:, :, :K], rotations, backend="simt")
(back,) = torch.autograd.grad(y, x, y)
print(f"there and back, x differs by at most {(back - x).abs().max().item():.0e}")
assert (back - x).abs().max() < 1e-5
# %% [markdown] exercise
# **Exercise.** Count the least bytes for any shape. Then do the trade: which lane holds
# the angle that I need, and in which of its four registers? And write a kernel that
# turns $q$ and $k$ in one launch; the emulator counts what it moves.
#
# Open `lessons/exercises/ex32_fused_rope.py` and `ex32_fused_rope.cu`, then run
# `python3 run.py check 32`.
# %% you_should_see
print(f"You should see: r = {ratios_text} for the four versions,")
stores_text = ", ".join(str(c[2]) for c in counted.values())
print(f"with {stores_text} stores of a warp a token.")
assert [round(r, 2) for r in ratios] == [2.93, 1.95, 1.95, 1.0]
