# %% [markdown] question
# # 29 · Threads
# Covers: `minillama/kernels.py`, `docs/simt.md`, `tests/simt/test_simt.py`
# Needs: 00
# Time: 12 s
# Teaches: grid, block, thread, warp, lane, barrier, shared memory, guard, 2-D index, divergence, schedule
# Paper: [CUDA C++ Programming Guide](https://docs.nvidia.com/cuda/cuda-c-programming-guide/), chapters 5 and 7
#
# **Question.** A GPU runs a hundred thousand *threads* at once. What is a thread,
# really? And why may two of them never trust each other's timing?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $b$ | `blockDim.x` | | how many threads a **block** has: they share a small memory |
# | $B$ | `blockIdx.x` | | index of the block; all blocks together are the **grid** |
# | $t$ | `threadIdx.x` | | index of the thread within its block |
# | $n$ | `n` | | how many elements there are |
# | $i$ | `i` | | the element that this thread works on |
# | $r$, $c$ | `r`, `c` | | row and column, where the elements are a matrix |
# | $R$, $C$ | `R`, `C` | | how many rows and columns that matrix has |
#
# You write one function, the **kernel**. Every thread runs it, and only its number
# tells a thread who it is.
# %% emulator
import torch

from lessons import profile_pictures
from minillama import kernels
from minillama.plots import show


def run_block(kernel, threads, order, *arguments):
    """Run every thread of a block to its next barrier, in this order; then again."""
    running = {i: kernel(i, threads, *arguments) for i in order}
    while running:
        ended = []
        for i, thread in running.items():
            try:
                next(thread)  # runs to the next `yield`: a barrier
            except StopIteration:
                ended.append(i)
        if 0 < len(ended) < len(running):
            raise RuntimeError(f"threads {ended} ended, the others wait at a barrier")
        for i in ended:
            del running[i]


def reverse(i, n, shared, x, y, with_barrier):
    """A kernel: each thread writes one element to shared memory and reads another."""
    shared[i] = x[i]
    if with_barrier:
        yield
    y[i] = shared[n - 1 - i]
# %% [markdown] coroutine
# This is a small emulator of one block. It runs a thread as a *coroutine*: a function
# that can stop in the middle. A **barrier** is where it stops (in Python: `yield`)
# until all threads of its block have arrived. Shared memory is a list that they all
# see.
#
# The coroutine is the emulator's way, because one CPU core must play all threads. On a
# GPU the threads run at the same time, in hardware. But one thing is the same: between
# two barriers, nobody promises an order. So we may choose the worst. We run the kernel
# forward, backward and shuffled, with its barrier and without.
# %% orders
def reversed_by(order, with_barrier, n=8):
    y = [None] * n
    run_block(reverse, n, order, [None] * n, list("threads!"), y, with_barrier)
    return "".join(letter or "." for letter in y)


for name, order in (("forward", range(8)), ("backward", range(7, -1, -1)),
                    ("shuffled", [3, 6, 0, 7, 2, 5, 1, 4])):
    print(f"{name:8}  with a barrier: {reversed_by(order, True)}   "
          f"without: {reversed_by(order, False)}")
    assert reversed_by(order, True) == "!sdaerht"
assert reversed_by(range(8), False) == "....erht"  # who came first found nothing
assert reversed_by(range(7, -1, -1), False) == "!sda...."
# %% [markdown] formula
# With the barrier, every order gives the same. Without it, each order gives another
# mistake, and on a real GPU the order changes from run to run.
#
# Real kernels have more elements than a block has threads (at most 1,024). So there
# are many blocks, and a thread finds its element by
#
# $$i = B \, b + t, \qquad \text{blocks} = \lceil n / b \rceil$$
# ascii: i = B b + t, blocks = ceil(n / b)
#
# If $b$ does not divide $n$, the last block has threads with $i \ge n$. They need a
# **guard**: `if (i < n)`.
#
# For a matrix, blocks and threads are numbered twice, by `.x` for columns and by `.y`
# for rows. Each direction has its own formula and its own guard. Memory has only one
# direction, row after row: element $(r, c)$ is number $r \, C + c$.
#
# Here are both in CUDA, the language of NVIDIA's GPUs. `__global__` marks a kernel;
# `LAUNCH((kernel), blocks, threads, 0, nullptr)(arguments)` is our way to write CUDA's
# `kernel<<<blocks, threads>>>(arguments)` (0: no shared memory is asked for at the
# start; `nullptr`: the default stream). `dim3(a, b)` is a in `x` and b in `y`, and
# `(n + 127) / 128` is $\lceil n / 128 \rceil$, as C rounds whole numbers down. Our
# library runs it on your CPU.
# %% cuda
lab = kernels.CudaSource("""
__global__ void twice(const float* x, float* y, int n, int guarded) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n || !guarded) y[i] = 2 * x[i];
}
__global__ void table(float* y, int R, int C) {  // y[r][c] = 100 r + c
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  const int r = blockIdx.y * blockDim.y + threadIdx.y;
  if (r < R && c < C) y[r * C + c] = 100 * r + c;
}
extern "C" void run(const float* x, float* y, int n, int guarded) {
  LAUNCH((twice), (n + 127) / 128, 128, 0, nullptr)(x, y, n, guarded);
}
extern "C" void matrix(float* y, int R, int C) {
  LAUNCH((table), dim3((C + 31) / 32, (R + 7) / 8), dim3(32, 8), 0, nullptr)(y, R, C);
}""", name="twice.cu")
x, y, matrix = torch.arange(1000.0), torch.zeros(1000), torch.zeros(10, 50)
for order in ("forward", "reverse", "shuffle:1"):
    with kernels.schedule(order):
        lab.run(x, y.zero_(), 1000, 1)
        lab.matrix(matrix.zero_(), 10, 50)
    assert torch.equal(y, 2 * x)  # eight blocks, in any order
    assert torch.equal(matrix, 100 * torch.arange(10.0)[:, None] + torch.arange(50.0))
# %% guard
try:
    with kernels.profile(lab) as p:
        lab.run(x, y, 1000, 0)  # thread 104 of block 7 is number 1000: one too many
except RuntimeError:
    print("without a guard:", p.findings[0])
assert "block (7,0,0), thread (104,0,0)" in p.findings[0].text
awake = sum(i < 1000 for i in range(7 * 128 + 96, 8 * 128))  # in the last 32 threads
show(profile_pictures.levels("From the grid to one lane: 1000 elements", 1000, 128),
     f"8 blocks, 4 warps in each; in the last warp the guard lets {awake} of 32 lanes "
     "through")
assert awake == 8
# %% [markdown] warps
# Read the picture from the top: the **grid**, one of its blocks, one of that block's
# warps. Inside the hardware, 32 threads of a block form a **warp**, and its threads are
# called **lanes**. (In a 2-D block threads are numbered along `x` first: in a block 32
# wide each row is one warp.) An instruction is issued for all lanes of a warp together.
# If a branch sends some lanes one way and some the other, the warp goes both ways, one
# after the other, and the lanes that are not concerned wait. That is **divergence**.
#
# Until 2017 a warp had one place in the program for all lanes. Since the Volta GPUs
# every lane keeps its own place (*independent thread scheduling*). An instruction still
# serves only lanes at the same place, so divergence costs the same. But lanes that
# parted need not meet again right behind the branch: who relies on that must say
# `__syncwarp()`, a barrier for one warp.
#
# The profiler counts *requests*: one load or store of one warp is one request. It also
# notes how many lanes took part. Below, two warps read, in two runs: in the first, odd
# and even lanes go different ways; in the second, the two warps do. The first takes
# twice the requests. So neighbours should go the same way.
#
# A loop diverges too. In `triangle`, lane $t$ adds up $t + 1$ numbers. The warp loops
# until its last lane is done: 32 times, with ever fewer lanes at work. Added up,
# $32 \cdot 33 / 2 = 528$ loads in 32 requests: 16.5 lanes of 32 on average. Only the
# store at the end has all of them together again.
# %% divergence
split = kernels.CudaSource("""
__global__ void branch(const float* x, float* y, int by_warp) {
  const int i = threadIdx.x, way = by_warp ? i / 32 : i % 2;
  if (way == 0) y[i] = x[i] + 1;
  else y[i] = x[64 + i] - 1;
}
__global__ void triangle(const float* x, float* y) {
  float sum = 0;
  for (int j = 0; j <= threadIdx.x; ++j) sum += x[j];
  y[threadIdx.x] = sum;
}
extern "C" void run(const float* x, float* y, int by_warp) {
  LAUNCH((branch), 1, 64, 0, nullptr)(x, y, by_warp);
}
extern "C" void sums(const float* x, float* y) {
  LAUNCH((triangle), 1, 32, 0, nullptr)(x, y);
}
""", name="branch.cu")
loads = []
for by_warp in (0, 1):
    with kernels.profile(split) as p:
        split.run(x, y, by_warp)
    loads.append(p.global_load)
    print(f"{('odd and even lanes', 'whole warps')[by_warp]:18}: {loads[-1].requests} "
          f"requests, {loads[-1].active_lanes:.0f} lanes in each")
assert [(c.requests, c.active_lanes) for c in loads] == [(4, 16), (2, 32)]
# %% timeline
with kernels.profile(split) as p:
    split.sums(x, y)
assert torch.equal(y[:32], x[:32].cumsum(0))
awake = p.global_load
print(f"{awake.requests} requests, {awake.active_lanes} lanes at work on average")
show(profile_pictures.lanes(p, "The warp runs as long as its longest lane"),
     f"Active lanes fall from 32 to 1 over {awake.requests} loads: "
     f"{awake.active_lanes} on average; the last bar is the store")
# %% [markdown] exercise
# **Exercise.** First a kernel for the small emulator: add up all elements of a block,
# in steps that each halve the number of threads at work. Where do the barriers go? No
# thread may read more than two numbers between two barriers.
#
# Then your first CUDA: `y[i] = a * x[i] + shift` over many blocks, with a guard; and a
# row added to every row of a matrix, with a 2-D index. Both are run in several orders
# (`kernels.schedule`).
#
# Open `lessons/exercises/ex29_simt.py` and `ex29_simt.cu`, then run
# `python3 run.py check 29`.
# %% you_should_see
print(f"You should see: {loads[0].requests} requests where lanes part, "
      f"{loads[1].requests} where warps do;")
print(f"{awake.active_lanes} of 32 lanes are at work in the triangle.")
assert awake.requests == 32 and awake.active_lanes == 16.5
