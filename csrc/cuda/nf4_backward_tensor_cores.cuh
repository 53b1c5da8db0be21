// The gradient dx = dy W with a weight in NF4, version 3: on tensor cores, for bf16 and fp16 and 8 rows of dy or more
// (version 2 for all else: nf4_vectors.cuh; levels by byte permutations: nf4_tensor_cores.cuh).
//
// Here the rows of W are summed over, and each of them has scales of its own: weights are scaled before they multiply.
//
//   order of k  Lane (g, t) of a warp (g = lane / 4, t = lane % 4) makes operands for columns 4 g ... 4 g + 3 of the warp's
//               32: two bytes of codes of each row. The result's 8 numbers of a row then lie side by side in a lane.
//   operands    A register holds two rows of one column. One permutation puts two rows' codes side by side, and the levels
//               come out in that order: the codes' bits are stored once, in the order the product y = x W^T reads.
//   scales      A block reads each absmax once and keeps it as two numbers of T, high + low: level * high + level * low, in
//               two fused operations for two weights, is rounded once. Levels and weights are rounded to T: by up to
//               2/512 together in bf16. Where fp16 has no number for an absmax, above 65504, the warp takes its rows of
//               that step without tensor cores, in fp32.
//   split N     Where a grid of 64 x 128 results would leave processors without work, a block takes 32 columns, and its four
//               warps share the rows of W of a step; their sums are added at the end, in a fixed order. 4096 columns are
//               128 blocks then, whatever the number of rows of dy.
//
// Bytes: ceil(M / rows) (N K / 2) of W (of 32 columns a half of each sector: two neighbouring blocks ask for it), a sector
// an absmax of the block, and ceil(K / columns) 2 M N of dy; dx once.
#pragma once

#include "nf4_backward_tiles.cuh"

namespace minillama::kernels {

// Begins to copy the step that starts at row n0 of W; what lies beyond the rows of dy and W and the columns becomes 0.
template <class T, int Rows, int Parts>
__device__ void copy_backward(typename NF4Backward<T, Rows, Parts>::Stage& stage, const T* dy, const NF4& w, int64_t m0,
                              int64_t n0, int64_t k0, int64_t M) {
  using Tile = NF4Backward<T, Rows, Parts>;
  constexpr int Threads = 32 * kNF4Warps, Chunks = Tile::kDown / 8;
  const int64_t K = w.columns, N = w.rows;
#pragma unroll
  for (int first = 0; first < Rows * Chunks; first += Threads) {
    const int i = first + threadIdx.x, row = i / Chunks, chunk = i % Chunks;
    T* to = stage.dy + chunk / 8 * Rows * 64 + swizzled<64>(row, chunk % 8);
    cp_async<16>(to, dy + (m0 + row) * N + n0 + chunk * 8, m0 + row < M && n0 + chunk * 8 < N ? 16 : 0);
  }
#pragma unroll
  for (int turn = 0; turn < Tile::kTurns; ++turn) {
    const int i = turn * Threads + threadIdx.x, row = i / Tile::kAcross, warp = i % Tile::kAcross;
    if (row >= Tile::kDown) continue;
    const int64_t n = n0 + row, k = k0 + warp * kNF4OfWarp;
    cp_async<16>(stage.codes + backward_place<Tile::kAcross>(row, warp), w.codes + (n * K + k) / 2,
                 n < N && k < K ? 16 : 0);
  }
}

// This thread's scales of the step that starts at row n0: those of the codes that it copies, 0 beyond the weight.
template <class Tile>
__device__ void load_scales(float (&absmax)[Tile::kTurns], const NF4& w, const NF4Tables& tables, int log_block,
                            int64_t n0, int64_t k0) {
#pragma unroll
  for (int turn = 0; turn < Tile::kTurns; ++turn) {
    const int i = turn * 32 * kNF4Warps + threadIdx.x, row = i / Tile::kAcross;
    const int64_t n = n0 + row, k = k0 + i % Tile::kAcross * kNF4OfWarp;
    const bool there = row < Tile::kDown && n < w.rows && k < w.columns;
    absmax[turn] = there ? nf4_absmax(w, tables, n * w.columns + k >> log_block) : 0;
  }
}

template <class T, class Tile>
__device__ void store_scales(typename Tile::Scales& scales, const float (&absmax)[Tile::kTurns]) {
#pragma unroll
  for (int turn = 0; turn < Tile::kTurns; ++turn) {
    const int i = turn * 32 * kNF4Warps + threadIdx.x, row = i / Tile::kAcross, warp = i % Tile::kAcross;
    if (row >= Tile::kDown) continue;
    const T high = T(absmax[turn]);
    scales.high[warp][row] = high;
    scales.low[warp][row] = T(absmax[turn] - float(high));
  }
}

template <class Pair>
__device__ Pair as_pair(unsigned bits) {
  Pair pair;
  memcpy(&pair, &bits, 4);
  return pair;
}

// Two levels, of two rows, times their scales high + low.
template <class T>
__device__ unsigned scaled(unsigned levels, unsigned high, unsigned low) {
  using Pair = decltype(Halves<T>::pair(0, 0));
  const Pair level = as_pair<Pair>(levels);
  const Pair weight = __hfma2(level, as_pair<Pair>(high), __hmul2(level, as_pair<Pair>(low)));
  unsigned bits;
  memcpy(&bits, &weight, 4);
  return bits;
}

// B[n][half]: rows `row` and `row` + 1 of a step, in columns 4 g + n of a warp's 32.
template <class T, class Tile>
__device__ void load_weights(unsigned (&B)[4][2], int half, const uint8_t* codes, const typename Tile::Scales& scales,
                             const LevelBytes& bytes, int row, int across) {
  const int g = threadIdx.x % 32 / 4;
  const auto codes_of = [&](int n) {
    return unsigned(*reinterpret_cast<const uint16_t*>(codes + backward_place<Tile::kAcross>(n, across) + 2 * g));
  };
  const unsigned both = __byte_perm(codes_of(row), codes_of(row + 1), 0x5140);  // byte 0 of each, then byte 1
  const unsigned high = *reinterpret_cast<const unsigned*>(&scales.high[across][row]);
  const unsigned low = *reinterpret_cast<const unsigned*>(&scales.low[across][row]);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const unsigned four = both >> 16 * j, seven = four & 0x7777, upper = (four >> 1 & 0x4444) | 0x3210;
    const unsigned lows = four_bytes(bytes.low, seven, upper), highs = four_bytes(bytes.high, seven, upper);
    B[2 * j][half] = scaled<T>(__byte_perm(lows, highs, 0x7351), high, low);  // of a byte's two codes the first
    B[2 * j + 1][half] = scaled<T>(__byte_perm(lows, highs, 0x6240), high, low);
  }
}

// sums += dy times a warp's rows of W of a step, in its 32 columns.
template <class T, int Rows, int Parts>
__device__ void add_gradients(float (&sums)[Rows / 16][4][4], const typename NF4Backward<T, Rows, Parts>::Stage& stage,
                              const typename NF4Backward<T, Rows, Parts>::Scales& scales, const LevelBytes& bytes) {
  using Tile = NF4Backward<T, Rows, Parts>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int s = 0; s < Tile::kOfWarp; s += 16) {
    const int row = warp % Parts * Tile::kOfWarp + s;
    unsigned A[Rows / 16][4], B[4][2];
    const T* dy = stage.dy + row / 64 * Rows * 64;
#pragma unroll
    for (int m = 0; m < Rows / 16; ++m)
      ldmatrix_x4(A[m], dy + swizzled<64>(16 * m + lane % 16, row % 64 / 8 + lane / 16));
#pragma unroll
    for (int half = 0; half < 2; ++half)
      load_weights<T, Tile>(B, half, stage.codes, scales, bytes, row + 8 * half + lane % 4 * 2, warp / Parts);
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int m = 0; m < Rows / 16; ++m) multiply_add<T>(sums[m][n], A[m], B[n][0], B[n][1]);
  }
}

// Eight numbers of a row, which lie side by side, rounded: 16 bytes.
template <class T>
__device__ void store_eight(T* to, const float (&x)[8]) {
  // As a plain assignment of the four nvcc writes it in four pieces.
  __stcs(reinterpret_cast<uint4*>(to),
         uint4{packed<T>(x[0], x[1]), packed<T>(x[2], x[3]), packed<T>(x[4], x[5]), packed<T>(x[6], x[7])});
}

template <class T, int Rows, int Parts>
__global__ void __launch_bounds__(32 * kNF4Warps, 2)
nf4_matmul_backward_v3(const T* __restrict__ dy, NF4 w, int log_block, T* __restrict__ dx, int64_t M) {
  using Tile = NF4Backward<T, Rows, Parts>;
  constexpr int Apart = kNF4OfWarp + 4;  // two rows' 32 floats then lie in 32 banks, 16 bytes a lane
  __shared__ NF4Tables tables;
  __shared__ __align__(16) typename Tile::Scales scales[2];
  __shared__ __align__(128) union {
    typename Tile::Stage stages[Tile::kStages];
    float sums[Parts][Rows][Apart];
  } memory;
  load_tables(tables);
  const LevelBytes bytes = level_bytes<T>(1);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned tiles = unsigned((M + Rows - 1) / Rows);  // of rows: neighbouring blocks read the same codes
  const int64_t m0 = int64_t(blockIdx.x % tiles) * Rows, k0 = int64_t(blockIdx.x / tiles) * Tile::kWide;
  const int64_t K = w.columns, N = w.rows;
  float sums[Rows / 16][4][4] = {}, absmax[Tile::kTurns];
  load_scales<Tile>(absmax, w, tables, log_block, 0, k0);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i * Tile::kDown < N) copy_backward<T, Rows, Parts>(memory.stages[i], dy, w, m0, i * Tile::kDown, k0, M);
    cp_async_commit();
  }
  int stage = 0, turn = 0;
#pragma unroll 1
  for (int64_t n0 = 0; n0 < N; n0 += Tile::kDown, stage = (stage + 1) % Tile::kStages, turn ^= 1) {
    const int64_t ahead = n0 + (Tile::kStages - 1) * Tile::kDown;
    store_scales<T, Tile>(scales[turn], absmax);
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step and its scales are complete, and the stage of the one before is read by all
    if (ahead < N)
      copy_backward<T, Rows, Parts>(memory.stages[(stage + Tile::kStages - 1) % Tile::kStages], dy, w, m0, ahead, k0, M);
    cp_async_commit();
    load_scales<Tile>(absmax, w, tables, log_block, n0 + Tile::kDown, k0);
    if (beyond_numbers<T, Tile>(scales[turn]))
      add_plain_gradients<T, Rows, Parts>(sums, memory.stages[stage], w, tables, log_block, n0, k0);
    else
      add_gradients<T, Rows, Parts>(sums, memory.stages[stage], scales[turn], bytes);
  }
  // Of row lane / 4 + 8 half of 16 a lane has columns 8 (lane % 4) ...: numbers 2 half of the four products, then the next.
  const auto finish = [&](int64_t row, int64_t column, const float (&eight)[8]) {
    if (row < M && column < K) store_eight(dx + row * K + column, eight);
  };
  if constexpr (Parts > 1) {
    __syncthreads();  // the last step is read: sums take its place
  }
#pragma unroll
  for (int m = 0; m < Rows / 16; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + lane / 4 + 8 * half;
      float eight[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) eight[i] = sums[m][i % 4][2 * half + i / 4];
      if constexpr (Parts == 1) finish(m0 + row, k0 + warp * kNF4OfWarp + lane % 4 * 8, eight);
      if constexpr (Parts > 1) {
        auto* to = reinterpret_cast<float4*>(&memory.sums[warp][row][lane % 4 * 8]);
        to[0] = float4{eight[0], eight[1], eight[2], eight[3]}, to[1] = float4{eight[4], eight[5], eight[6], eight[7]};
      }
    }
  if constexpr (Parts > 1) {
    __syncthreads();  // the sums are complete
#pragma unroll
    for (int i = threadIdx.x; i < Rows * 4; i += 32 * kNF4Warps) {
      float eight[8] = {};
#pragma unroll
      for (int part = 0; part < Parts; ++part) {
        const auto* of = reinterpret_cast<const float4*>(&memory.sums[part][i / 4][i % 4 * 8]);
        const float4 x = of[0], y = of[1];
        eight[0] += x.x, eight[1] += x.y, eight[2] += x.z, eight[3] += x.w;
        eight[4] += y.x, eight[5] += y.y, eight[6] += y.z, eight[7] += y.w;
      }
      finish(m0 + i / 4, k0 + i % 4 * 8, eight);
    }
  }
}

template <int Rows, int Parts, class T>
void launch_nf4_backward(const T* dy, NF4 w, int log_block, T* dx, int64_t M, cudaStream_t stream) {
  const unsigned blocks = ceil_div(M, Rows) * ceil_div(w.columns, NF4Backward<T, Rows, Parts>::kWide);
  LAUNCH((nf4_matmul_backward_v3<T, Rows, Parts>), blocks, 32 * kNF4Warps, 0, stream)(dy, w, log_block, dx, M);
}

void nf4_matmul_backward(DType dtype, const void* dy_, NF4 w, void* dx_, int64_t M, void* stream_) {
  if (M * w.columns == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const unsigned blocks = ceil_div(w.columns, kNF4Across);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto* dy = static_cast<const T*>(dy_);
    auto* dx = static_cast<T*>(dx_);
    if constexpr (sizeof(T) == 2) {
      const int log = nf4_log_block(dy, w, kNF4OfWarp);
      const bool whole = w.rows % 8 == 0 && reinterpret_cast<uintptr_t>(dx) % 16 == 0;  // 16 bytes of dy, and of dx
      if (log >= 0 && whole && M >= kNF4FewestRows) {
        if (M <= 16) return launch_nf4_backward<16, 4>(dy, w, log, dx, M, stream);
        if (M <= 32) return launch_nf4_backward<32, 4>(dy, w, log, dx, M, stream);
        if (ceil_div(M, 64) * ceil_div(w.columns, 128) < kNF4FewestBlocks)
          return launch_nf4_backward<64, 4>(dy, w, log, dx, M, stream);
        return launch_nf4_backward<64, 1>(dy, w, log, dx, M, stream);
      }
    }
    const int log = nf4_log_block(dy, w, kNF4Columns);
    if (log < 0)
      LAUNCH((nf4_matmul_backward_v1<T>), nf4_grid(ceil_div(w.columns, kNF4Threads), M), kNF4Threads, 0, stream)
      (dy, w, dx, M);
    else if (M == 1)
      LAUNCH((nf4_matmul_backward_v2<T, 1>), nf4_grid(blocks, 1), 32 * kNF4Down, 0, stream)(dy, w, log, dx, M);
    else
      LAUNCH((nf4_matmul_backward_v2<T, kNF4Many>), nf4_grid(blocks, ceil_div(M, kNF4Many)), 32 * kNF4Down, 0, stream)
      (dy, w, log, dx, M);
  });
  check_launch("nf4_matmul_backward");
}

}  // namespace minillama::kernels
