# %% [markdown] question
# # 30 · GPU memory
# Covers: `minillama/simt/profile_report.py`, `docs/simt.md`, `tests/simt/test_simt_profile.py`
# Needs: 29
# Time: 12 s
# Teaches: sectors, coalescing, shared memory, banks, bank conflicts, padding, latency, occupancy, caches
# Paper: [CUDA C++ Best Practices Guide](https://docs.nvidia.com/cuda/cuda-c-best-practices-guide/), chapter 10
#
# **Question.** A matrix lies in memory row by row. Why is reading a column slower than
# reading a row, and by how much?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $a_t$ | `addresses` | (32,) | the byte address that lane $t$ of a warp wants |
# | $s$ | `sectors` | | how many 32-byte pieces of memory must be fetched |
# | $c$ | `conflicts` | | extra turns that shared memory needs |
#
# One load of a warp, 32 addresses at once, is a **request**.
# %% naive
import torch

from lessons import profile_pictures
from minillama import kernels
from minillama.plots import show


def sectors(addresses):
    """How many pieces of 32 bytes hold these addresses?"""
    return len({address // 32 for address in addresses})


def conflicts(addresses):
    """Turns beyond the first that 32 banks of 4-byte words need to serve them."""
    words = {address // 4 for address in addresses}
    in_bank = [sum(word % 32 == bank for word in words) for bank in range(32)]
    return max(in_bank) - 1


row = [4 * lane for lane in range(32)]  # 32 floats side by side
column = [4 * 64 * lane for lane in range(32)]  # one float in each row of 64
print(f"a row needs {sectors(row)} sectors, a column {sectors(column)}")
assert (sectors(row), sectors(column)) == (4, 32)
# %% [markdown] formula
# Global memory, the large one, moves in **sectors** of 32 bytes. If one float of a
# sector is wanted, all eight come. So the cost of a request is
#
# $$s = |\{ \lfloor a_t / 32 \rfloor : t = 0 \dots 31 \}|$$
# ascii: s = number of different values of floor(a_t / 32), t = 0..31
#
# A row of 32 floats fills 4 sectors. A column of them touches 32, and seven eighths of
# what is fetched is thrown away. Neighbouring lanes should read neighbouring
# addresses: then the request is **coalesced**.
#
# A **transpose** cannot please both sides. It reads rows and writes columns, or the
# other way round: one of the two moves 8 times the bytes. Here is the plain version,
# for a matrix of 64 by 64. In the table, *issued/comp* is bytes moved over bytes
# wanted.
# %% plain
lab = kernels.CudaSource("""
__global__ void plain(const float* x, float* y, int n) {
  const int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
  y[c * n + r] = x[r * n + c];
}
template <int pad>
__global__ void tiled(const float* x, float* y, int n) {
  __shared__ float tile[32][32 + pad];
  int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
  tile[threadIdx.y][threadIdx.x] = x[r * n + c];  // a row in
  __syncthreads();
  c = blockIdx.y * 32 + threadIdx.x, r = blockIdx.x * 32 + threadIdx.y;
  y[r * n + c] = tile[threadIdx.x][threadIdx.y];  // a row out
}
extern "C" void run(const float* x, float* y, int n, int version) {
  const dim3 grid(n / 32, n / 32), block(32, 32);
  if (version == 0) LAUNCH((plain), grid, block, 0, nullptr)(x, y, n);
  if (version == 1) LAUNCH((tiled<0>), grid, block, 0, nullptr)(x, y, n);
  if (version == 2) LAUNCH((tiled<1>), grid, block, 0, nullptr)(x, y, n);
}""", name="transpose.cu")
x = torch.arange(4096.0).view(64, 64)
profiles = []
for version in range(3):
    y = torch.zeros(64, 64)
    with kernels.profile(lab) as p:
        lab.run(x, y, 64, version)
    assert torch.equal(y, x.T) and not p.findings
    profiles.append(p)
# %% counted
plain, tiled, padded = profiles
print(plain.table())
load, store = plain.global_load, plain.global_store
assert load.requests == store.requests == 64 * 64 // 32  # 128 warps, one request each
assert load.sectors_per_request == sectors(row)  # the profiler agrees with our set
assert store.sectors_per_request == sectors(column)
show(profile_pictures.sectors(plain, "A column: every lane in a sector of its own",
                              op="store"),
     f"A store of the plain transpose touches {store.sectors_per_request:.0f} sectors")
# %% [markdown] tile
# The way out is a detour. A block copies a **tile** of 32 by 32 into its **shared
# memory** (an array marked `__shared__`), row by row, waits (`__syncthreads()` is the
# barrier), and writes the tile out row by row. Rows become columns inside, where there
# are no sectors. Both sides of global memory are coalesced now.
#
# But shared memory has a rule of its own. It consists of 32 **banks**: word $w$ (four
# bytes) lies in bank $w \bmod 32$. Each bank serves one word at a time. If two lanes
# want different words of one bank, one waits: a **bank conflict**. (The same word
# serves all that want it.) The bank $k$ with the most words decides how many wait:
#
# $$c = \max_{k} |\{ w_t : w_t \bmod 32 = k \}| - 1, \quad w_t = \lfloor a_t / 4 \rfloor$$
# ascii: c = max over banks k of (number of different words w_t with w_t mod 32 = k) - 1, w_t = floor(a_t / 4)
#
# A column of a tile that is 32 words wide lies in *one* bank. The worst case.
# %% banks
for name, p in (("plain", plain), ("tiled", tiled), ("padded", padded)):
    print(f"{name:6}: {p.global_store.sectors_per_request:4.0f} sectors per store, "
          f"{p.shared_load.conflicts:5} conflicts")
assert tiled.global_store.sectors_per_request == sectors(row)
assert padded.global_store.sectors_per_request == sectors(row)
down_the_tile = [4 * 32 * lane for lane in range(32)]
assert tiled.shared_load.conflicts == 128 * conflicts(down_the_tile) == 3968
show(profile_pictures.banks(tiled, "A column of a 32-wide tile lies in one bank",
                            op="load"),
     f"Unpadded, all lanes want one bank: {conflicts(down_the_tile)} conflicts each")
# %% [markdown] padding
# The cure costs one unused word a row: a tile 33 words wide. Row $r$ of the tile then
# starts $33 r$ words in, in bank $33 r \bmod 32 = r$. So the 32 words of a column lie
# in 32 banks. (Any odd width does it: an odd number has no divisor in common with 32.)
# %% cured
down_the_padded_tile = [4 * 33 * lane for lane in range(32)]
assert padded.total("shared").conflicts == conflicts(down_the_padded_tile) == 0
free = [width for width in range(32, 41)
        if conflicts([4 * width * lane for lane in range(32)]) == 0]
print("widths without conflict:", free)
assert free == [33, 35, 37, 39]
show(profile_pictures.banks(padded, "One word of padding: a bank for every lane",
                            op="load"),
     "Padded to 33 words, the 32 lanes of a column lie in 32 banks: no conflict")
# %% [markdown] counted_not_timed
# **What is counted is not time.** Counts come out the same on every machine, and they
# tell the three versions apart. But the emulator has no clock. On a real GPU four
# things decide how long a kernel takes.
#
# - **Latency.** A number from global memory arrives several hundred clock cycles after
#   its request. The warp that wants it stops; the hardware runs another one meanwhile.
#   At 2 TB/s and half a microsecond, a million bytes must be on their way at any time
#   to keep the memory busy. That is why a GPU wants so many threads.
# - **Occupancy.** A GPU consists of many *multiprocessors*, and blocks are given to
#   them. One can hold so many warps (64 on many GPUs); occupancy is the share of these
#   places that is filled. Registers (a thread's own places for numbers) and shared
#   memory limit it: of 100 KB, a block that takes 60 leaves no room for a second. More
#   warps hide more latency, until memory is busy all the time. Beyond that they gain
#   nothing.
# - **Caches.** Each multiprocessor has a small cache, and all share a larger one. A
#   sector that is found there does not come from memory again. So a column costs less
#   than 8 times a row, if its neighbours are read before their sectors are dropped.
# - **Tensor cores** multiply whole tiles in one instruction, many times faster than
#   lanes can (lesson 39). Then loading the tiles often takes the longest.
#
# A kernel takes at least as long as its bytes need on the way, and as its arithmetic
# needs: the longer of the two is the limit. Lesson 36 draws it.
# %% [markdown] exercise
# **Exercise.** Padding wastes memory, and 16-byte loads do not like odd rows. There is
# a way without: store element (row, column) of a 32-wide tile in another column, so
# that rows *and* columns are free of conflicts. Find it.
#
# Then write the transpose as a kernel, for a matrix of any shape. A block has 32 by 8
# threads for its tile of 32 by 32, so each thread moves 4 elements; at the matrix's
# edges a tile is not full. No bank conflicts (pad, or use your place), 4 sectors a
# request.
#
# Open `lessons/exercises/ex30_gpu_memory.py` and `ex30_gpu_memory.cu`, then run
# `python3 run.py check 30`.
# %% you_should_see
print(f"You should see: {store.sectors_per_request:.0f} sectors per store in the plain "
      f"version and {tiled.global_store.sectors_per_request:.0f} through a tile;")
print(f"{tiled.shared_load.conflicts} bank conflicts without padding and "
      f"{padded.shared_load.conflicts} with it.")
assert (tiled.shared_load.conflicts, padded.shared_load.conflicts) == (3968, 0)
