// Products with a weight in NF4, version 2: codes by vectors, each of them read once for up to 8 rows of x, which wait in
// shared memory as fp32 (version 1, and what they share: nf4_matmul.cuh).
//
//   nf4_matmul_v2           a warp takes 4 rows of W, a lane 32 neighbouring weights of each: 16 bytes of codes and one
//                           absmax. 512 bytes of W a request, 1.00 of compulsory for every 8 rows of x; x is read once for
//                           16 rows of W. Levels are summed with x first and scaled once for 32 weights: x waits as
//                           x / 64, so that no 32 of them overflow, and the sum is multiplied by 64 at the end.
//   nf4_matmul_backward_v2  a lane takes 8 neighbouring columns, the warps of a block every eighth row of W: 128 bytes of
//                           codes a request. The warps' sums are added at the end, in a fixed order.
//
// One row of x (a model that writes token by token) has kernels of its own, without the sums of the other seven, and in 16
// bits nf4_one_row.cuh. Levels
// are looked up in shared memory: 16 of them lie in 16 banks, so no look-up waits for another.
#pragma once

#include "nf4_matmul.cuh"

namespace minillama::kernels {

constexpr int kNF4Rows = 4, kNF4Warps = 4;  // rows of W that a warp takes at once, warps of a block
constexpr int kNF4Lane = 32, kNF4Step = 32 * kNF4Lane;  // columns that a lane takes at once, and a warp
constexpr int kNF4Apart = kNF4Lane + 4;  // words between two lanes' columns: 8 lanes' 16 bytes then lie in 32 banks
constexpr int kNF4Many = 8;  // rows of x at once, where there is more than one
constexpr float kNF4Shrink = 1.0f / 64;  // a power of two: rounds nothing but what is below 1e-36
constexpr int kNF4Blocks = 4;  // that an SM must have registers for; twice as many where there is one row of x

template <class T>
struct alignas(16) Sixteen {  // bytes
  T x[16 / sizeof(T)];
};

template <int Ms>
using NF4Columns = float[Ms][32 * kNF4Apart];

// Columns k0 ... k0 + 1023 of rows m0 ... of x / 64, as fp32; what lies beyond x becomes 0. K is a multiple of 32.
template <int Ms, class T>
__device__ void load_columns(NF4Columns<Ms>& tile, const T* x, int64_t m0, int64_t M, int64_t k0, int64_t K) {
  constexpr int V = 16 / sizeof(T);
#pragma unroll
  for (int m = 0; m < Ms; ++m) {
#pragma unroll 1
    for (int i = threadIdx.x * V; i < kNF4Step; i += 32 * kNF4Warps * V) {
      Sixteen<T> some = {};
      if (m0 + m < M && k0 + i < K) some = *reinterpret_cast<const Sixteen<T>*>(x + (m0 + m) * K + k0 + i);
      auto* to = reinterpret_cast<float4*>(&tile[m][i / kNF4Lane * kNF4Apart + i % kNF4Lane]);
#pragma unroll
      for (int j = 0; j < V; j += 4) {
        const float4 four = {float(some.x[j]) * kNF4Shrink, float(some.x[j + 1]) * kNF4Shrink,
                             float(some.x[j + 2]) * kNF4Shrink, float(some.x[j + 3]) * kNF4Shrink};
        to[j / 4] = four;
      }
    }
  }
}

// The levels of four codes that begin at byte `byte` of a word; the first of a byte's two lies in its high nibble.
__device__ inline void four_levels(float (&level)[4], const NF4Tables& tables, unsigned word, int byte) {
#pragma unroll
  for (int i = 0; i < 4; ++i) level[i] = tables.level[word >> (8 * (byte + i / 2) + 4 - 4 * (i % 2)) & 15];
}

template <class T, int Ms>
__global__ void __launch_bounds__(32 * kNF4Warps, Ms == 1 ? 2 * kNF4Blocks : kNF4Blocks)
nf4_matmul_v2(const T* __restrict__ x, NF4 w, int log_block, T* __restrict__ y, int64_t M) {
  __shared__ NF4Tables tables;
  __shared__ __align__(16) NF4Columns<Ms> tile;
  load_tables(tables);
  const int lane = threadIdx.x % 32;
  const int64_t n0 = (int64_t(blockIdx.x) * kNF4Warps + threadIdx.x / 32) * kNF4Rows, K = w.columns;
  for (int64_t m0 = int64_t(blockIdx.y) * Ms; m0 < M; m0 += int64_t(gridDim.y) * Ms) {
    float sums[kNF4Rows][Ms] = {};
#pragma unroll 1
    for (int64_t k0 = 0; k0 < K; k0 += kNF4Step) {
      const int64_t k = k0 + lane * kNF4Lane;
      uint4 codes[kNF4Rows] = {};
      float absmax[kNF4Rows] = {};
#pragma unroll
      for (int r = 0; r < kNF4Rows; ++r) {
        if (k >= K || n0 + r >= w.rows) continue;
        const int64_t element = (n0 + r) * K + k;
        codes[r] = *reinterpret_cast<const uint4*>(w.codes + element / 2);
        absmax[r] = nf4_absmax(w, tables, element >> log_block);
      }
      __syncthreads();  // the columns before are multiplied
      load_columns<Ms>(tile, x, m0, M, k0, K);
      __syncthreads();
      float of_lane[kNF4Rows][Ms] = {};
#pragma unroll
      for (int i = 0; i < kNF4Lane; i += 4) {
        float level[kNF4Rows][4];
#pragma unroll
        for (int r = 0; r < kNF4Rows; ++r) {
          const unsigned word = i < 8 ? codes[r].x : i < 16 ? codes[r].y : i < 24 ? codes[r].z : codes[r].w;
          four_levels(level[r], tables, word, i % 8 / 2);
        }
#pragma unroll
        for (int m = 0; m < Ms; ++m) {
          const float4 some = *reinterpret_cast<const float4*>(&tile[m][lane * kNF4Apart + i]);
#pragma unroll
          for (int r = 0; r < kNF4Rows; ++r)
            of_lane[r][m] += level[r][0] * some.x + level[r][1] * some.y + level[r][2] * some.z + level[r][3] * some.w;
        }
      }
#pragma unroll
      for (int r = 0; r < kNF4Rows; ++r)
#pragma unroll
        for (int m = 0; m < Ms; ++m) sums[r][m] += of_lane[r][m] * absmax[r];
    }
    float mine = 0;  // lane m * 4 + r writes the sum of row r with row m
#pragma unroll
    for (int r = 0; r < kNF4Rows; ++r)
#pragma unroll
      for (int m = 0; m < Ms; ++m) {
        for (int apart = 16; apart > 0; apart /= 2) sums[r][m] += __shfl_xor_sync(0xffffffffu, sums[r][m], apart);
        if (lane == m * kNF4Rows + r) mine = sums[r][m];
      }
    const int64_t n = n0 + lane % kNF4Rows, m = m0 + lane / kNF4Rows;
    if (lane < kNF4Rows * Ms && n < w.rows && m < M) y[m * w.rows + n] = T(mine / kNF4Shrink);
  }
}

constexpr int kNF4Columns = 8, kNF4Across = 32 * kNF4Columns;  // of a lane and of a block
constexpr int kNF4Down = 8, kNF4Gradients = 64;  // warps of a block; rows of W whose gradients wait in shared memory

// Where column c of a lane's 8 lies: turned by a quarter of the lane, so that one column of 32 lanes lies in 32 banks, and
// so do all columns of 4 lanes.
__device__ inline int turned(int lane, int c) { return lane * kNF4Columns + (c + lane / 4) % kNF4Columns; }

template <class T, int Ms>
__global__ void __launch_bounds__(32 * kNF4Down, kNF4Blocks / 2)
nf4_matmul_backward_v2(const T* __restrict__ dy, NF4 w, int log_block, T* __restrict__ dx, int64_t M) {
  __shared__ NF4Tables tables;
  __shared__ float gradients[kNF4Gradients][Ms | 1], parts[kNF4Down][kNF4Across];  // odd: a column lies in 32 banks
  load_tables(tables);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = int64_t(blockIdx.x) * kNF4Across, k = first + lane * kNF4Columns, K = w.columns, N = w.rows;
  for (int64_t m0 = int64_t(blockIdx.y) * Ms; m0 < M; m0 += int64_t(gridDim.y) * Ms) {
    float sums[Ms][kNF4Columns] = {};
#pragma unroll 1
    for (int64_t n0 = 0; n0 < N; n0 += kNF4Gradients) {
      __syncthreads();  // the rows before are multiplied
      for (int i = threadIdx.x; i < Ms * kNF4Gradients; i += 32 * kNF4Down) {
        const int64_t m = m0 + i / kNF4Gradients, n = n0 + i % kNF4Gradients;
        gradients[i % kNF4Gradients][i / kNF4Gradients] = m < M && n < N ? float(dy[m * N + n]) : 0.0f;
      }
      __syncthreads();
#pragma unroll 2
      for (int row = warp; row < kNF4Gradients; row += kNF4Down) {
        if (n0 + row >= N || k >= K) continue;
        const int64_t element = (n0 + row) * K + k;
        const unsigned word = *reinterpret_cast<const unsigned*>(w.codes + element / 2);
        const float absmax = nf4_absmax(w, tables, element >> log_block);
        float weight[2][4];
        four_levels(weight[0], tables, word, 0);
        four_levels(weight[1], tables, word, 2);
#pragma unroll
        for (int c = 0; c < kNF4Columns; ++c) weight[c / 4][c % 4] *= absmax;
#pragma unroll
        for (int m = 0; m < Ms; ++m)
#pragma unroll
          for (int c = 0; c < kNF4Columns; ++c) sums[m][c] += gradients[row][m] * weight[c / 4][c % 4];
      }
    }
#pragma unroll
    for (int m = 0; m < Ms; ++m) {
#pragma unroll
      for (int c = 0; c < kNF4Columns; ++c) parts[warp][turned(lane, c)] = sums[m][c];
      __syncthreads();
      float sum = 0;
      for (int i = 0; i < kNF4Down; ++i) sum += parts[i][turned(threadIdx.x / kNF4Columns, threadIdx.x % kNF4Columns)];
      if (m0 + m < M && first + threadIdx.x < K) dx[(m0 + m) * K + first + threadIdx.x] = T(sum);
      __syncthreads();  // the sums are read
    }
  }
}

// log2 of the block size, by which a shift finds a weight's block (a GPU has no instruction that divides); -1 where version
// 2 cannot run: `together` neighbouring weights, from a multiple of it on, must lie in one row, one block, whole bytes.
inline int nf4_log_block(const void* x, const NF4& w, int64_t together) {
  int log = 0;
  while (int64_t{1} << log < w.block_size) ++log;
  const bool on_16_bytes = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(w.codes)) % 16 == 0;
  const bool fits = w.columns % together == 0 && w.block_size % together == 0 && w.block_size == int64_t{1} << log;
  return fits && on_16_bytes ? log : -1;
}

inline dim3 nf4_grid(int64_t across, int64_t M) { return {unsigned(across), unsigned(M < 65535 ? M : 65535)}; }

}  // namespace minillama::kernels
