// The gradient dx = dy W with a weight in NF4: what a block of nf4_backward_tensor_cores.cuh holds of a step, and the steps
// that fp16 has no numbers for, an absmax above 65504: 2 FLOPs and a look-up a weight and row, in fp32, from memory that
// the step has read in any case but for its absmax values.
#pragma once

#include "nf4_tensor_cores.cuh"

namespace minillama::kernels {

// A block takes Rows of dy and kWide columns of W; its Parts warps of the same columns share the kDown rows of W of a step.
template <class T, int Rows, int Parts>
struct NF4Backward {
  static constexpr int kAcross = kNF4Warps / Parts, kWide = kAcross * kNF4OfWarp;
  static constexpr int kDown = Parts == 1 ? 64 : 64 * 64 / Rows, kOfWarp = kDown / Parts;
  static constexpr int kTurns = (kDown * kAcross + 32 * kNF4Warps - 1) / (32 * kNF4Warps);  // pieces of 32 codes, a thread

  struct Stage {
    T dy[Rows * kDown];
    uint8_t codes[kDown * kWide / 2];
  };
  static constexpr int kStages = 45 * 1024 / sizeof(Stage);  // with all else at most 48 KiB

  struct Scales {  // of 32 columns each; the 8 keep four warps' numbers in different banks
    T high[kAcross][kDown + 8], low[kAcross][kDown + 8];
  };
};

// Where the 16 bytes of a warp's codes of a row lie: 4 lanes' rows, which are 2 apart, in 32 banks.
template <int Across>
__device__ int backward_place(int row, int warp) { return (row * Across + (warp ^ row / 2 % Across)) * 16; }

// Whether an absmax of a warp's rows of this step is none in T: only fp16 has such.
template <class T, class Tile>
__device__ bool beyond_numbers(const typename Tile::Scales& scales) {
  if constexpr (std::is_same_v<T, __half>) {
    const int warp = threadIdx.x / 32, parts = kNF4Warps / Tile::kAcross;
    bool beyond = false;
#pragma unroll
    for (int i = 0; i < Tile::kOfWarp; i += 32) {
      const int row = warp % parts * Tile::kOfWarp + (i + threadIdx.x % 32) % Tile::kOfWarp;
      beyond |= fabsf(float(scales.high[warp / parts][row])) == INFINITY;
    }
    return __any_sync(kAllLanes, beyond);
  }
  return false;
}

// The same as add_gradients, a weight at a time: of each row of W a lane has columns 8 t ... 8 t + 7.
template <class T, int Rows, int Parts>
__device__ void add_plain_gradients(float (&sums)[Rows / 16][4][4],
                                    const typename NF4Backward<T, Rows, Parts>::Stage& stage, const NF4& w,
                                    const NF4Tables& tables, int log_block, int64_t n0, int64_t k0) {
  using Tile = NF4Backward<T, Rows, Parts>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32, across = warp / Parts;
  const int64_t k = k0 + across * kNF4OfWarp;
#pragma unroll 1
  for (int row = warp % Parts * Tile::kOfWarp; row < (warp % Parts + 1) * Tile::kOfWarp; ++row) {
    const int64_t n = n0 + row;
    if (n >= w.rows || k >= w.columns) break;
    const float absmax = nf4_absmax(w, tables, n * w.columns + k >> log_block);
    const auto codes = *reinterpret_cast<const unsigned*>(stage.codes + backward_place<Tile::kAcross>(row, across) + 4 * t);
    const T* dy = stage.dy + row / 64 * Rows * 64;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float weight = tables.level[codes >> (c / 2 * 8 + 4 - c % 2 * 4) & 15] * absmax;
#pragma unroll
      for (int m = 0; m < 2 * (Rows / 16); ++m) {
        const float d = float(dy[swizzled<64>(8 * m + g, row % 64 / 8) + row % 8]);
        sums[m / 2][c % 4][m % 2 * 2 + c / 4] += d * weight;
      }
    }
  }
}

}  // namespace minillama::kernels
