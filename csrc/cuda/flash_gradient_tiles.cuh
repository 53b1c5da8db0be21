// What the gradients of attention on tensor cores are made of, beside flash_fragments.cuh: scores that become P and dS, and a
// tile of dS that a block shares. Used by flash_backward_tensor_cores.cuh.
#pragma once

#include "flash_fragments.cuh"

namespace minillama::kernels {

constexpr int kKeyWarps = kBlockKeys / 16;  // of a block
constexpr int64_t kMostRows = 1 << 30;  // of queries and keys together: their places are 32 bits
template <int D>
constexpr int kWalked = D <= 96 ? 32 : 16;  // queries of a tile: more, and a thread needs more than 255 registers

// What the exponents of a row count from, the reciprocal of their sum, and delta.
struct RowNumbers {
  float base, inverse, delta;

  __device__ RowNumbers(float2 row, float delta_, float c) : base(row.x * c), delta(delta_) {
    inverse = __fdividef(1, row.y * fast_exp2(__fmaf_rn(row.x, c, -base)));
  }
};

// A score and its gradient's product dO v become P and dS.
__device__ inline void share_and_gradient(float& s, float& dp, const RowNumbers& row, float c) {
  s = fast_exp2(__fmaf_rn(s, c, -row.base)) * row.inverse;
  dp = s * (dp - row.delta);
}

// 0 where query and key do not meet, whatever was computed there: row lane / 4 keeps its columns from begins[0] up to
// ends[0], row lane / 4 + 8 those of [1].
template <int N>
__device__ void keep_columns(float (&P)[N][4], float (&dS)[N][4], const int (&begins)[2], const int (&ends)[2]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * n + int(threadIdx.x) % 4 * 2 + i % 2;
      if (column < begins[i / 2] || column >= ends[i / 2]) P[n][i] = dS[n][i] = 0;
    }
}

// The same by a mask's bits: seen(n, i) says whether they meet.
template <int N, class Seen>
__device__ void keep_seen(float (&P)[N][4], float (&dS)[N][4], const Seen& seen) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!seen(n, i)) P[n][i] = dS[n][i] = 0;
}

// Begins to copy the maxima and sums of a tile's rows, and their deltas; beyond the last row they become 0.
template <int Rows>
__device__ void copy_numbers(float2* to, float* to_delta, const float2* rows, const float* delta, int64_t first,
                             int64_t end) {
  if (threadIdx.x >= Rows) return;
  const int wanted = first + threadIdx.x < end;
  cp_async<8>(to + threadIdx.x, rows + first + threadIdx.x, 8 * wanted);
  cp_async<4>(to_delta + threadIdx.x, delta + first + threadIdx.x, 4 * wanted);
}

// The scores of a warp's 16 keys, which begin at row `first` of a tile, with its queries. As scores_of, but no operand stays.
template <int D, int N, class T>
__device__ void scores_of_keys(float (&S)[N][4], const T* K, int first, const T* Q) {
  const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    unsigned a[4];
    ldmatrix_x4(a, K + swizzled<D>(first + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      unsigned b[4];
      ldmatrix_x4(b, Q + swizzled<D>(n * 8 + row, 2 * k + half));
      multiply_add<T>(S[n], a, b[0], b[1]);
      multiply_add<T>(S[n + 1], a, b[2], b[3]);
    }
  }
}

// A warp's dS^T into the rows of its keys, from `first` on, of a tile whose columns are queries.
template <int Walked, class T>
__device__ void store_scores(T* tile, const float (&dS)[Walked / 8][4], int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < Walked / 8; ++n)
      *reinterpret_cast<unsigned*>(tile + swizzled<Walked>(first + lane / 4 + 8 * half, n) + lane % 4 * 2) =
          packed<T>(dS[n][2 * half], dS[n][2 * half + 1]);
}

// dQ += dS k over those of the block's keys whose warps are live, a byte each: of 16 queries, and of 8 N columns.
template <int D, int N, class T>
__device__ void add_keys(float (&dQ)[N][4], const T* dS, const T* K, int row, int column, uint2 live) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kBlockKeys; k += 32) {
    if (!((k < 64 ? live.x : live.y) >> k % 64 / 2 & 0xffff)) continue;  // of two warps
    unsigned a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      ldmatrix_x4_trans(a[i], dS + swizzled<kWalked<D>>(k + 16 * i + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
#pragma unroll
    for (int n = 0; n < N; ++n) {
      unsigned b[4];
      ldmatrix_x4_trans(b, K + swizzled<D>(k + lane, column / 8 + n));
      multiply_add<T>(dQ[n], a[0], b[0], b[1]);
      multiply_add<T>(dQ[n], a[1], b[2], b[3]);
    }
  }
}

// A tile of results of the whole block times a factor, rounded: a warp's 16 rows and 8 N columns, by way of a tile.
template <int D, int N, class T>
__device__ void store_tile(T* tile, const float (&C)[N][4], int first, int column, float factor, T* to, int rows, int d) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < N; ++n)
      *reinterpret_cast<unsigned*>(tile + swizzled<D>(first + lane / 4 + 8 * half, column / 8 + n) + lane % 4 * 2) =
          packed<T>(C[n][2 * half] * factor, C[n][2 * half + 1] * factor);
  __syncthreads();  // the tile is complete
#pragma unroll 1
  for (int i = threadIdx.x; i < kWalked<D> * D / 8; i += 32 * kKeyWarps) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    if (row < rows && chunk * 8 < d)
      *reinterpret_cast<uint4*>(to + row * d + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + swizzled<D>(row, chunk));
  }
}

}  // namespace minillama::kernels
