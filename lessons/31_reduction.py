# %% [markdown] question
# # 31 · Reduction
# Covers: `minillama/rms_norm.py`, `minillama/kernels.py`, `tests/simt/test_simt_profile.py`
# Needs: 05, 29, 30
# Time: 16 s
# Teaches: tree reduction, warp shuffle, barriers, races, race detector, RMSNorm kernel, online maximum and sum
# Paper: [Milakov and Gimelshein 2018](https://arxiv.org/abs/1805.02867), algorithm 3
#
# **Question.** RMSNorm adds up thousands of squares, and softmax as many exponentials.
# How do many threads add one sum, and when must they wait for each other?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $n$ | `n` | | how many numbers there are, a power of two here |
# | $x$ | `x` | (n,) | the numbers; $x_i$ is the $i$-th |
# | $s_k$ | `level` | (n / 2^k,) | what is left after $k$ steps |
# %% naive
import torch

from minillama import kernels
from minillama.plots import CONTRAST, OURS, figure, label_end, show
from minillama.rms_norm import rms_norm

torch.manual_seed(0)


def tree_sum(x):
    """Add the second half to the first until one number is left; count the steps."""
    level, steps = list(x), 0
    while len(level) > 1:
        half = len(level) // 2
        level = [level[i] + level[i + half] for i in range(half)]  # all at once
        steps += 1
    return level[0], steps


numbers = torch.randn(128)
total, steps = tree_sum(numbers.tolist())
print(f"{len(numbers)} numbers, {steps} steps, sum {total:.4f}")
assert steps == 7 and abs(total - numbers.sum().item()) < 1e-4
# %% [markdown] formula
# One thread needs $n - 1$ steps. A **tree** needs $\log_2 n$, since in each step every
# pair is added at the same time:
#
# $$s_{k+1,\,i} = s_{k,\,i} + s_{k,\,i + n / 2^{k+1}}, \qquad i < n / 2^{k+1}$$
# ascii: s[k+1, i] = s[k, i] + s[k, i + n / 2^(k+1)], for i < n / 2^(k+1)
#
# Between two steps stands a barrier: thread $i$ reads what another thread wrote. But
# the 32 lanes of a warp have a faster way. A **shuffle** lets a lane read a register of
# another lane: no shared memory, no barrier. So a good sum has two levels: shuffles
# within each warp, then one barrier, then the sums of the warps.
#
# Here are both, as kernels that normalise one row of 128 numbers: RMSNorm.
# %% kernels
SOURCE = """
__global__ void by_tree(const float* x, float* y, float eps) {
  __shared__ float part[128];
  const int i = threadIdx.x;
  part[i] = x[i] * x[i];
  __syncthreads();  // A
  for (int half = 64; half > 0; half /= 2) {
    if (i < half) part[i] += part[i + half];
    __syncthreads();  // B
  }
  y[i] = x[i] * rsqrtf(part[0] / 128 + eps);
}
__global__ void by_warps(const float* x, float* y, float eps) {
  __shared__ float of_warp[4];
  const int i = threadIdx.x;
  float sum = x[i] * x[i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (i % 32 == 0) of_warp[i / 32] = sum;
  __syncthreads();  // C
  sum = of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
  y[i] = x[i] * rsqrtf(sum / 128 + eps);
}
extern "C" void tree(const float* x, float* y, float eps) {
  LAUNCH((by_tree), 1, 128, 0, nullptr)(x, y, eps);
}
extern "C" void warps(const float* x, float* y, float eps) {
  LAUNCH((by_warps), 1, 128, 0, nullptr)(x, y, eps);
}"""
# %% agree
lab = kernels.CudaSource(SOURCE, name="rms_norm.cu")
wanted = rms_norm(numbers, torch.ones(128), 1e-6)
counts = {}
for name in ("tree", "warps"):
    for order in ("forward", "reverse", "shuffle:1", "shuffle:2"):
        y = torch.zeros(128)
        with kernels.schedule(order), kernels.profile(lab) as p:
            getattr(lab, name)(numbers, y, 1e-6)
        assert (y - wanted).abs().max() < 1e-5 and not p.findings  # under every order
    shared = p.shared_load.requests + p.shared_store.requests
    counts[name] = (p.barriers, shared, p.events("__shfl"))
    print(f"{name:5}: {p.barriers} barriers, {shared:2} requests to shared memory, "
          f"{counts[name][2]} shuffles")
# the tree: 4 warps store; halves of 64, 32 and 5 smaller ones keep 2 + 1 + 5 warps at
# work, with two loads and a store each; 4 warps read the sum
assert counts["tree"] == (8, 4 + 3 * (2 + 1 + 5) + 4, 0)
assert counts["warps"] == (1, 4 + 4 * 4, 4 * 5)
# %% [markdown] broken
# Now let us break it, in the three ways in which everybody breaks it. A missing barrier
# is the worst: on a GPU the result is right on most days. The profiler does not look
# at results. It remembers who touched which word, and complains when two threads met
# at a word with nothing between them that orders the two: a **race**.
# %% three_mistakes
def explain(old, new):
    """Change one place of the source, run it, return what the profiler says."""
    assert SOURCE.count(old) == 1
    broken = kernels.CudaSource(SOURCE.replace(old, new), name="broken.cu")
    name = "warps" if "C" in old else "tree"
    try:
        with kernels.profile(broken) as p:
            getattr(broken, name)(numbers, torch.zeros(128), 1e-6)
    except RuntimeError:
        pass  # the kernel had to be stopped
    return p.findings[0]


mistakes = (("__syncthreads();  // C", ";", "race"),
            ("  __syncthreads();  // B", "  if (i < half) __syncthreads();", "race"),
            ("+= part[i + half]", "+= x[i + half + 1]", "out of bounds"))
for old, new, kind in mistakes:
    found = explain(old, new)
    print(f"{kind}: {found}\n")
    assert found.kind == kind and "broken.cu" in found.place
# %% [markdown] awake
# **Who is awake?** In our tree the first `half` threads work, so that whole warps fall
# asleep together. An older habit is to let every second thread work, then every fourth:
# the same sums in another order. It keeps all warps awake with ever fewer lanes each.
# %% interleaved
pairs = kernels.CudaSource("""
template <bool front>
__global__ void tree(const float* x, float* y) {
  __shared__ float part[128];
  const int i = threadIdx.x;
  part[i] = x[i];
  __syncthreads();
  for (int s = 1; s < 128; s *= 2) {
    const int other = front ? 64 / s : s;
    if (front ? i < other : i % (2 * s) == 0) part[i] += part[i + other];
    __syncthreads();
  }
  if (i == 0) *y = part[0];
}
extern "C" void run(const float* x, float* y, int front) {
  if (front) LAUNCH((tree<true>), 1, 128, 0, nullptr)(x, y);
  else LAUNCH((tree<false>), 1, 128, 0, nullptr)(x, y);
}""", name="pairs.cu")
awake, requests = {}, {}
for name, front in (("every second", 0), ("the first half", 1)):
    with kernels.profile(pairs) as p:
        pairs.run(numbers, torch.zeros(1), front)
    lanes = [lanes for _, lanes in next(iter(p.kernels.values()))["timeline"]]
    awake[name] = lanes[2:-2:3]  # of the first warp, one of three requests in each step
    requests[name] = p.total("shared").requests
    print(f"{name:14}: {requests[name]} requests, lanes awake by step {awake[name]}")
assert awake["the first half"] == [32, 32, 16, 8, 4, 2, 1]
assert awake["every second"] == [16, 8, 4, 2, 1, 1, 1]
# %% figure
title = "The first half works: warps sleep whole, or work whole"
picture, axes = figure(title, "step of the tree", "lanes awake in the first warp")
for front, colour in enumerate((CONTRAST, OURS)):
    name, lanes = list(awake.items())[front]
    axes.plot(range(1, 8), lanes, color=colour, marker="o", markersize=4)
    label_end(axes, [2.1 + front], [lanes[1 + front]], name, colour, dy=8)
axes.set(yticks=(0, 8, 16, 24, 32), xticks=range(1, 8))
show(picture, f"{requests['every second']} requests to shared memory with every second "
              f"thread, {requests['the first half']} with the first half")
# %% [markdown] exercise
# **Exercise.** Softmax needs two numbers of a row: the maximum $m$, and the sum of all
# $e^{x_i - m}$. A tree can find both in *one* pass, if two halves can be combined.
# Write that combination: the heart of flash attention.
#
# Then a kernel: RMSNorm of rows of any length, run by the emulator, which tells you of
# races and wasted requests in a sentence.
#
# Open `lessons/exercises/ex31_reduction.py` and `ex31_reduction.cu`, then run
# `python3 run.py check 31`.
# %% you_should_see
print(f"You should see: the tree passes {counts['tree'][0]} barriers, the shuffles "
      f"{counts['warps'][0]};")
print(f"{requests['every second']} requests if every second thread works, "
      f"{requests['the first half']} if the first half does.")
assert (requests["every second"], requests["the first half"]) == (74, 29)
