// The product of one row of x in bf16 or fp16 with a weight in NF4: a model that writes token by token (more rows, and
// fp32: nf4_vectors.cuh).
//
// 4.1 bits a weight leave a GPU little time for it: at an A100's full bandwidth 4.9 instructions of a lane. The loop's
// machine code for sm_80 has 4.8 a weight: 609 for 4 rows of 32, what reads absmax in either form among them.
//
//   pairs     A byte holds two codes. A table in shared memory has both levels for each of 256 bytes, in fp32: half the
//             look-ups, and half the work to find a place in it.
//   copies    The table lies there 16 times, a copy for each lane of 16: 8 bytes of each of them are 32 banks, and no lane
//             waits for another, whatever the codes.
//   ahead     The codes of a warp's next step are asked for before those of this one are multiplied.
//   split K   A block takes 8 rows of W, a warp 4 of them and every other 1024 columns; two warps' sums are added at the end.
//
// Bytes: codes and absmax once, x once for 8 rows of W. Levels wait as level / 64, so that no 32 of them overflow.
#pragma once

#include "nf4_vectors.cuh"

namespace minillama::kernels {

constexpr int kOneRows = 2 * kNF4Rows, kOneParts = 2, kCopies = 16;

// Where a lane's 8 columns number `chunk` of 4 lie: those of 8 lanes, and all of 2 lanes, in 32 banks.
__device__ inline int one_place(int lane, int chunk) { return lane * kNF4Lane + (chunk ^ lane / 2 % 4) * 8; }

// Columns k0 ... of x for each part of the block; what lies beyond x becomes 0.
template <class T>
__device__ void load_row(T (&tile)[kOneParts][kNF4Step], const T* x, int64_t k0, int64_t K) {
  constexpr int V = 16 / sizeof(T);
#pragma unroll
  for (int first = 0; first < kOneParts * kNF4Step; first += 32 * kNF4Warps * V) {
    const int i = first + threadIdx.x * V, column = i % kNF4Step;
    uint4 some = {0, 0, 0, 0};
    if (k0 + i < K) some = *reinterpret_cast<const uint4*>(x + k0 + i);
    *reinterpret_cast<uint4*>(&tile[i / kNF4Step][one_place(column / kNF4Lane, column % kNF4Lane / 8)]) = some;
  }
}

// A lane's 32 codes of each of a warp's rows, whose columns k ... begin at weights `first`; 0 beyond the columns.
__device__ inline void load_codes(uint4 (&codes)[kNF4Rows], const NF4& w, const int64_t (&first)[kNF4Rows], int64_t k) {
#pragma unroll
  for (int r = 0; r < kNF4Rows; ++r) {
    codes[r] = uint4{0, 0, 0, 0};
    if (k < w.columns) codes[r] = *reinterpret_cast<const uint4*>(w.codes + (first[r] + k) / 2);
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kNF4Warps, kNF4Blocks)
nf4_matvec_v1(const T* __restrict__ x, NF4 w, int log_block, T* __restrict__ y) {
  __shared__ NF4Tables tables;
  __shared__ __align__(16) float2 pairs[256][kCopies];
  __shared__ __align__(128) T tile[kOneParts][kNF4Step];
  __shared__ float of_warp[kNF4Warps][kNF4Rows];
  load_tables(tables);
#pragma unroll 4
  for (int i = threadIdx.x; i < 256 * kCopies; i += 32 * kNF4Warps) {
    const int byte = i / kCopies;  // the first of its codes lies in the high nibble
    pairs[byte][i % kCopies] = float2{tables.level[byte >> 4] * kNF4Shrink, tables.level[byte & 15] * kNF4Shrink};
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp / 2;
  const int64_t n0 = int64_t(blockIdx.x) * kOneRows + warp % 2 * kNF4Rows, K = w.columns;
  // By way of a shuffle: a compiler that knows which bits it has spends an instruction more on each look-up.
  const unsigned copy = __shfl_sync(0xffffffffu, unsigned(lane % kCopies * sizeof(float2)), lane);
  const auto levels_of = [&](unsigned word, int byte) {  // of four: its number times the bytes of all copies, in one shift
    const unsigned place = (byte == 0 ? word << 7 : word >> (8 * byte - 7)) & 0x7f80;
    return *reinterpret_cast<const float2*>(reinterpret_cast<const char*>(pairs) + (place | copy));
  };
  int64_t first[kNF4Rows];  // weight of each row; beyond the last row the last once more, whose sum is not used
#pragma unroll
  for (int r = 0; r < kNF4Rows; ++r) first[r] = min(n0 + r, w.rows - 1) * K;
  uint4 codes[kNF4Rows], ahead[kNF4Rows];
  float sums[kNF4Rows] = {};
  load_codes(codes, w, first, part * kNF4Step + lane * kNF4Lane);
#pragma unroll 1
  for (int64_t k0 = 0; k0 < K; k0 += kOneParts * kNF4Step) {
    const int64_t k = k0 + part * kNF4Step + lane * kNF4Lane;
    load_codes(ahead, w, first, k + kOneParts * kNF4Step);
    float absmax[kNF4Rows] = {}, of_lane[kNF4Rows] = {};
#pragma unroll
    for (int r = 0; r < kNF4Rows; ++r)
      if (k < K) absmax[r] = nf4_absmax(w, tables, first[r] + k >> log_block);
    __syncthreads();  // the columns before are multiplied
    load_row(tile, x, k0, K);
    __syncthreads();  // the columns, and at first the pairs, are complete
#pragma unroll
    for (int i = 0; i < kNF4Lane; i += 8) {
      const auto eight = *reinterpret_cast<const Sixteen<T>*>(&tile[part][one_place(lane, i / 8)]);
#pragma unroll
      for (int r = 0; r < kNF4Rows; ++r) {
        const unsigned word = i < 8 ? codes[r].x : i < 16 ? codes[r].y : i < 24 ? codes[r].z : codes[r].w;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 level = levels_of(word, j);
          of_lane[r] += level.x * float(eight.x[2 * j]);
          of_lane[r] += level.y * float(eight.x[2 * j + 1]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kNF4Rows; ++r) sums[r] += of_lane[r] * absmax[r], codes[r] = ahead[r];
  }
#pragma unroll
  for (int r = 0; r < kNF4Rows; ++r) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], apart);
    if (lane == 0) of_warp[warp][r] = sums[r];
  }
  __syncthreads();  // the sums are complete
  const int64_t n = int64_t(blockIdx.x) * kOneRows + threadIdx.x;
  if (threadIdx.x >= kOneRows || n >= w.rows) return;
  const int half = threadIdx.x / kNF4Rows, r = threadIdx.x % kNF4Rows;
  y[n] = T((of_warp[half][r] + of_warp[half + 2][r]) / kNF4Shrink);
}

}  // namespace minillama::kernels
