// A mask of attention as bits: what every query sees, the diagonal included, a bit for each key.
//
//   pack_mask_v1  A warp takes a query. Each lane reads one bool, and the votes of 32 lanes are a word.
//
// Bytes: B T S read once, an eighth of that written. A tile of attention then reads 4 bytes for 32 keys of a query, and those
// of the next query lie behind them: (B, words, T). All heads share them.
#pragma once

#include "flash_attention.cuh"

namespace minillama::kernels {

constexpr unsigned kEvery = 0xffffffffu;

__global__ void pack_mask_v1(AttentionMask mask, unsigned* __restrict__ seen, AttentionShape shape) {
  const int lane = threadIdx.x % 32;
  const auto [first, one, batch] = TileOfHead(shape.queries, kDeltaRows, 1);
  const int64_t query = first + threadIdx.x / 32;
  if (query >= shape.queries) return;  // a whole warp leaves
  const bool* from = mask.data + batch * mask.batch + query * mask.query;
  unsigned* to = seen + batch * words_of(shape) * shape.queries + query;
  for (int64_t start = 0; start < shape.keys; start += 32) {
    const int64_t key = start + lane;
    const unsigned word = __ballot_sync(kEvery, sees(shape, query, key) && from[key]);
    if (lane == 0) to[start / 32 * shape.queries] = word;
  }
}

// Writes the bits: (B, words, T).
inline void pack_mask(const AttentionMask& mask, unsigned* seen, const AttentionShape& shape, cudaStream_t stream) {
  if (shape.batch * shape.queries == 0) return;
  const dim3 grid = tile_grid(shape.queries, kDeltaRows, 1, shape.batch);
  LAUNCH((pack_mask_v1), grid, 32 * kDeltaRows, 0, stream)(mask, seen, shape);
}

}  // namespace minillama::kernels
