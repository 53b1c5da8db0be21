// Sound programs about warps and cooperative groups. Each prints one line, which a comment foretells by arithmetic.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace cg = cooperative_groups;
#define FULL 0xffffffffu

template <typename T, typename F>
__device__ T warp_fold(T value, F fold) {
  for (int d = 1; d < 32; d <<= 1) value = fold(value, __shfl_xor_sync(FULL, value, d));
  return value;
}

// prints: fold 528 32 1
__global__ void fold(int *out) {
  const int mine = threadIdx.x + 1;
  const int sum = warp_fold(mine, [](int a, int b) { return a + b; });
  const int most = warp_fold(mine, [](int a, int b) { return max(a, b); });
  const int least = warp_fold(mine, [](int a, int b) { return min(a, b); });
  if (threadIdx.x == 7) out[0] = sum, out[1] = most, out[2] = least;
}

// prints: inclusive 1 3 528
__global__ void inclusive(int *out) {
  int value = threadIdx.x + 1;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    int from = __shfl_up_sync(FULL, value, d);
    if (threadIdx.x >= d) value += from;
  }
  out[threadIdx.x] = value;
}

// prints: votes 5 aaaaaaaa 1 0 20
__global__ void votes(unsigned *out, int limit) {
  const unsigned lane = threadIdx.x & 31;
  const unsigned odd = __ballot_sync(FULL, lane & 1);
  const int some = __any_sync(FULL, lane == 9), all = __all_sync(FULL, lane < 9);
  const bool mine = lane < limit;
  const unsigned group = __ballot_sync(FULL, mine);
  if (mine) {
    const int leader = __ffs(group) - 1;
    int sum = 0;
    if (lane == leader) sum = 20;
    sum = __shfl_sync(group, sum, leader);
    if (lane == limit - 1) out[0] = __popc(group), out[1] = odd, out[2] = some, out[3] = all, out[4] = sum;
  }
}

// prints: aggregated 96
__device__ int aggregated_increment(int *counter) {
  const unsigned active = __activemask();
  const int leader = __ffs(active) - 1, lane = threadIdx.x % 32;
  int base = 0;
  if (lane == leader) base = atomicAdd(counter, __popc(active));
  base = __shfl_sync(active, base, leader);
  return base + __popc(active & ((1u << lane) - 1));
}
__global__ void aggregated(int *counter, int *slots) {
  if (threadIdx.x % 4 != 0) slots[aggregated_increment(counter)] = 1;
}

// prints: tiles 4 28 36 92
__global__ void tiles(int *out) {
  auto block = cg::this_thread_block();
  auto tile = cg::tiled_partition<8>(block);
  const int sum = cg::reduce(tile, int(block.thread_rank()), cg::plus<int>());
  const int most = cg::reduce(tile, int(tile.thread_rank() + tile.meta_group_rank()), cg::greater<int>());
  if (tile.thread_rank() == 0) out[tile.meta_group_rank()] = sum;
  block.sync();
  if (block.thread_rank() == 0) out[4] = tile.meta_group_size();
  if (block.thread_rank() == 31) out[5] = most;
}

// prints: shared tiles 2016
__global__ void shared_tiles(int *out) {
  __shared__ int parts[2][32];
  cg::thread_block block = cg::this_thread_block();
  cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
  parts[warp.meta_group_rank()][warp.thread_rank()] = block.thread_rank();
  for (int half = 16; half > 0; half /= 2) {
    warp.sync();
    int add = warp.thread_rank() < half ? parts[warp.meta_group_rank()][warp.thread_rank() + half] : 0;
    warp.sync();
    parts[warp.meta_group_rank()][warp.thread_rank()] += add;
  }
  cg::sync(block);
  if (threadIdx.x == 0) *out = parts[0][0] + parts[1][0];
}

// prints: grid 36 8
__global__ void grid_wide(int *data, int *out, int n) {
  cg::grid_group grid = cg::this_grid();
  for (int i = grid.thread_rank(); i < n; i += grid.size()) data[i] = i + 1;
  for (int half = n / 2; half > 0; half /= 2) {
    grid.sync();
    for (int i = grid.thread_rank(); i < half; i += grid.size()) data[i] += data[i + half];
  }
  grid.sync();
  if (grid.thread_rank() == grid.size() - 1) out[0] = data[0], out[1] = grid.size() / blockDim.x;
}

// prints: match 3 10
__global__ void match(unsigned *out) {
  const unsigned same = __match_any_sync(FULL, threadIdx.x % 3);
  if (threadIdx.x == 0) out[0] = 0, out[1] = __popc(same) - 1;
  __syncwarp();
  if (__ffs(same) - 1 == threadIdx.x) atomicAdd(&out[0], 1u);
}

// prints: bitonic 0 1 2 31
__global__ void bitonic(int *keys) {  // a warp sorts in registers
  int key = keys[threadIdx.x];
  for (int k = 2; k <= 32; k *= 2)
    for (int j = k / 2; j > 0; j /= 2) {
      const int other = __shfl_xor_sync(FULL, key, j);
      const bool ascending = (threadIdx.x & k) == 0, lower = (threadIdx.x & j) == 0;
      key = ascending == lower ? min(key, other) : max(key, other);
    }
  keys[threadIdx.x] = key;
}

// prints: lock 64
__device__ int mutex = 0;
__global__ void with_lock(int *total) {  // one thread of each warp takes the lock, so that no lane waits for another
  for (bool done = false; !done;) {
    if (threadIdx.x % 32 == 0 && atomicCAS(&mutex, 0, 1) == 0) {
      __threadfence();
      *total += 8;
      __threadfence();
      atomicExch(&mutex, 0);
      done = true;
    } else if (threadIdx.x % 32 != 0) {
      done = true;
    }
  }
}

// prints: coalesced 16 120
__global__ void coalesced(int *out) {
  if (threadIdx.x % 2) {
    cg::coalesced_group odd = cg::coalesced_threads();
    int rank = odd.thread_rank();
    for (int d = odd.size() / 2; d > 0; d /= 2) rank += odd.shfl_down(rank, d);
    if (odd.thread_rank() == 0) out[0] = odd.size(), out[1] = rank;
  }
}

int main() {
  int *d, *more;
  cudaMalloc(&d, 4096);
  cudaMalloc(&more, 4096);
  std::vector<int> h(1024);
  const auto fetch = [&](int *from = nullptr) { cudaMemcpy(h.data(), from ? from : d, 128, cudaMemcpyDeviceToHost); };
  fold<<<1, 32>>>(d), fetch();
  printf("fold %d %d %d\n", h[0], h[1], h[2]);
  inclusive<<<1, 32>>>(d), fetch();
  printf("inclusive %d %d %d\n", h[0], h[1], h[31]);
  votes<<<1, 32>>>((unsigned *)d, 5), fetch();
  printf("votes %d %x %d %d %d\n", h[0], h[1], h[2], h[3], h[4]);
  cudaMemset(more, 0, 4096);
  aggregated<<<1, 128>>>(more, more + 1), fetch(more);
  printf("aggregated %d\n", h[0]);
  tiles<<<1, 32>>>(d), fetch();
  printf("tiles %d %d %d %d\n", h[4], h[0], h[5] + 26, h[1]);
  shared_tiles<<<1, 64>>>(d), fetch();
  printf("shared tiles %d\n", h[0]);
  int n = 8, *data = more, *out = d;
  void *arguments[] = {&data, &out, &n};
  cudaLaunchCooperativeKernel((void *)grid_wide, dim3(8), dim3(4), arguments, 0, 0), fetch();
  printf("grid %d %d\n", h[0], h[1]);
  match<<<1, 32>>>((unsigned *)d), fetch();
  printf("match %d %d\n", h[0], h[1]);
  for (int i = 0; i < 32; ++i) h[i] = i * 13 % 32;
  cudaMemcpy(d, h.data(), 128, cudaMemcpyHostToDevice);
  bitonic<<<1, 32>>>(d), fetch();
  printf("bitonic %d %d %d %d\n", h[0], h[1], h[2], h[31]);
  cudaMemset(more, 0, 4);
  with_lock<<<4, 64>>>(more), fetch(more);
  printf("lock %d\n", h[0]);
  coalesced<<<1, 32>>>(d), fetch();
  printf("coalesced %d %d\n", h[0], h[1]);
  return cudaDeviceSynchronize();
}
