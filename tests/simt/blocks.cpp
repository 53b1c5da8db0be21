// Blocks, grids, shared memory, barriers, schedules.

#include <ctime>

#include "cases.h"

__global__ void remember_indices(int* out) {
  const int inner = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + inner] += inner + 1000 * block;
}

CASE(every_thread_runs_once) {
  std::vector<int> out(30 * 42, 0);
  LAUNCH((remember_indices), dim3(5, 3, 2), dim3(7, 3, 2), 0, nullptr)(out.data());
  for (int i = 0; i < 30 * 42; ++i) REQUIRE_EQUAL(out[i], i % 42 + 1000 * (i / 42));
}

template <int Tile, bool barrier>
__global__ void transpose(const float* in, float* out, int rows, int columns) {
  __shared__ float tile[Tile][Tile + 1];
  int x = blockIdx.x * Tile + threadIdx.x, y = blockIdx.y * Tile + threadIdx.y;
  if (x < columns && y < rows) tile[threadIdx.y][threadIdx.x] = in[y * columns + x];
  if (barrier) __syncthreads();
  x = blockIdx.y * Tile + threadIdx.x, y = blockIdx.x * Tile + threadIdx.y;
  if (x < rows && y < columns) out[y * rows + x] = tile[threadIdx.x][threadIdx.y];
}

template <bool barrier>
static bool transposed(int rows, int columns) {
  std::vector<float> in(rows * columns), out(rows * columns, -1);
  for (int i = 0; i < rows * columns; ++i) in[i] = float(i);
  const dim3 grid((columns + 7) / 8, (rows + 7) / 8);
  LAUNCH((transpose<8, barrier>), grid, dim3(8, 8), 0, nullptr)(in.data(), out.data(), rows, columns);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c)
      if (out[c * rows + r] != in[r * columns + c]) return false;
  return true;
}

CASE(a_tile_is_transposed_through_shared_memory) {
  REQUIRE(transposed<true>(1, 1));
  REQUIRE(transposed<true>(17, 29));
}
CASE(a_transpose_without_its_barrier_is_wrong) { REQUIRE(!transposed<false>(17, 29)); }

__global__ void sum_of_block(const int* in, int* out, int skip) {
  DYNAMIC_SHARED(int, part);
  part[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (half != skip) __syncthreads();
    if (int(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

static bool summed(int skip) {
  std::vector<int> in(3 * 128), out(3);
  for (int i = 0; i < 3 * 128; ++i) in[i] = i * i;
  LAUNCH((sum_of_block), 3, 128, 128 * sizeof(int), nullptr)(in.data(), out.data(), skip);
  for (int b = 0; b < 3; ++b) {
    int wanted = 0;
    for (int i = 0; i < 128; ++i) wanted += in[b * 128 + i];
    if (out[b] != wanted) return false;
  }
  return true;
}

CASE(a_block_is_summed) { REQUIRE(summed(0)); }
CASE(a_sum_that_lacks_any_one_barrier) {  // prints how many of the 7 planted mistakes show
  int caught = 0;
  for (int skip = 64; skip > 0; skip /= 2) caught += !summed(skip);
  std::printf("%d\n", caught);
}

__global__ void first_half_leaves(int* out) {
  __shared__ int seen;
  if (threadIdx.x < blockDim.x / 2) return;
  if (threadIdx.x + 1 == blockDim.x) seen = 7;
  __syncthreads();
  out[threadIdx.x] = seen;
}

CASE(a_barrier_waits_for_the_threads_that_are_left) {
  int out[96] = {};
  LAUNCH((first_half_leaves), 1, 96, 0, nullptr)(out);
  for (int i = 0; i < 96; ++i) REQUIRE_EQUAL(out[i], i < 48 ? 0 : 7);
}

__global__ void voting(int* out) {
  out[3 * threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0);
  out[3 * threadIdx.x + 1] = __syncthreads_or(threadIdx.x == 40);
  out[3 * threadIdx.x + 2] = __syncthreads_and(threadIdx.x != 40);
}

CASE(barriers_count_votes) {
  int out[3 * 50];
  LAUNCH((voting), 1, 50, 0, nullptr)(out);
  for (int i = 0; i < 50; ++i) {
    REQUIRE_EQUAL(out[3 * i], 17);
    REQUIRE_EQUAL(out[3 * i + 1], 1);
    REQUIRE_EQUAL(out[3 * i + 2], 0);
  }
}

__global__ void read_unwritten(float* out) {
  DYNAMIC_SHARED(float, memory);
  out[blockIdx.x] = memory[threadIdx.x];
  memory[threadIdx.x] = 1;
}

CASE(dynamic_shared_memory_starts_as_nan_in_every_block) {
  float out[3];
  LAUNCH((read_unwritten), 3, 4, 16, nullptr)(out);
  for (float value : out) REQUIRE(std::isnan(value));
}

__global__ void write_order(int* out, int* count) {
  out[(*count)++] = int(blockIdx.x * 100 + threadIdx.x);
  __syncthreads();
  out[(*count)++] = int(blockIdx.x * 100 + threadIdx.x);
}

CASE(order) {  // of 3 blocks of 5 threads, before and after a barrier
  int out[30], count = 0;
  LAUNCH((write_order), 3, 5, 0, nullptr)(out, &count);
  for (int value : out) std::printf("%d ", value);
}

__global__ void take_tickets(int* counter, int* of_thread) { of_thread[threadIdx.x] = atomicAdd(counter, 1); }
__global__ void wait_for_the_other(int* flag) {
  if (threadIdx.x == 0) while (atomicAdd(flag, 0) == 0) {}
  else atomicExch(flag, 1);
}
__global__ void all_atomics(int* x, unsigned* u, float* f, __nv_bfloat16* b) {
  atomicSub(&x[0], 2), atomicMin(&x[1], int(threadIdx.x) - 5), atomicMax(&x[2], int(threadIdx.x));
  atomicAnd(&u[0], ~(1u << threadIdx.x)), atomicOr(&u[1], 1u << threadIdx.x), atomicXor(&u[2], threadIdx.x);
  atomicInc(&u[3], 6u), atomicCAS(&u[4], threadIdx.x, threadIdx.x + 1);
  atomicAdd(f, 0.5f), atomicAdd(b, __nv_bfloat16(1.0f));
}

CASE(atomics_lose_nothing) {
  int counter = 0, tickets[64], x[3] = {100, 100, 0}, flag = 0;
  LAUNCH((take_tickets), 1, 64, 0, nullptr)(&counter, tickets);
  REQUIRE_EQUAL(counter, 64);
  unsigned u[5] = {0xffff, 0, 0, 0, 0};
  float f = 0;
  __nv_bfloat16 b(0.0f);
  LAUNCH((all_atomics), 1, 16, 0, nullptr)(x, u, &f, &b);
  REQUIRE_EQUAL(x[0], 68);
  REQUIRE_EQUAL(x[1], -5);
  REQUIRE_EQUAL(x[2], 15);
  REQUIRE_EQUAL(u[0], 0);
  REQUIRE_EQUAL(u[1], 0xffff);
  REQUIRE_EQUAL(u[2], 0);  // 0 ^ 1 ^ ... ^ 15
  REQUIRE_EQUAL(u[3], 16 % 7);
  REQUIRE_EQUAL(f, 8);
  REQUIRE_EQUAL(float(b), 16);
  LAUNCH((wait_for_the_other), 1, 2, 0, nullptr)(&flag);  // ends, because spinning gives way
  REQUIRE_EQUAL(flag, 1);
}

__global__ void many_barriers(int count) {
  for (int i = 0; i < count; ++i) __syncthreads();
}

CASE(nanoseconds_of_a_barrier) {  // CPU time per thread in a block of 256, best of 5
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const clock_t start = clock();
    LAUNCH((many_barriers), 1, 256, 0, nullptr)(2000);
    best = std::min(best, double(clock() - start) / CLOCKS_PER_SEC / 2000 / 256 * 1e9);
  }
  std::printf("%.1f\n", best);
}
