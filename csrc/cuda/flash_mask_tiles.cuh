// What attention on tensor cores asks of a mask's bits (flash_mask.cuh): of the elements of a fragment, which query sees which
// key; of a whole tile, whether anybody in the block has a part of it, so that others are neither copied nor multiplied.
#pragma once

#include "flash_fragments.cuh"
#include "flash_mask.cuh"

namespace minillama::kernels {

// What a warp's rows lane / 4 and lane / 4 + 8 see of a tile of keys, a bit each.
template <int D>
struct SeenKeys {
  unsigned words[2][kKeys<D> / 32];

  __device__ SeenKeys() {}
  __device__ SeenKeys(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t query, int64_t start) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kKeys<D> / 32; ++i)
        words[half][i] = seen_word(seen, shape, batch, query + 8 * half, start + 32 * i);
  }
  __device__ unsigned any(int half) const {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kKeys<D> / 32; ++i) bits |= words[half][i];
    return bits;
  }
  __device__ bool operator()(int n, int i) const {  // of the elements of a fragment
    return words[i / 2][n / 4] >> (8 * (n % 4) + int(threadIdx.x) % 4 * 2 + i % 2) & 1;
  }
};

// The first tile from `start` on of which a query of the block sees a key, or one that begins at `end` or behind it. A
// barrier for each tile that is looked at.
template <int D>
__device__ int64_t next_seen(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t first, int64_t start,
                             int64_t end) {
  static_assert(32 * kWarps == 2 * kQueries && kKeys<D> <= 64);  // two threads a query, a word each
  const int64_t query = first + threadIdx.x / 2, offset = threadIdx.x % 2 * 32 % kKeys<D>;
  while (start < end && !__syncthreads_or(seen_word(seen, shape, batch, query, start + offset) != 0)) start += kKeys<D>;
  return start;
}

// By whom a warp's 16 keys, of which `key` is the first, are seen, of a tile of queries: for each column of a fragment a word.
template <int Rows>
struct SeeingQueries {
  unsigned words[Rows / 8][2];

  __device__ SeeingQueries(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t start, int64_t key) {
#pragma unroll
    for (int n = 0; n < Rows / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        words[n][i] = seen_word(seen, shape, batch, start + 8 * n + threadIdx.x % 4 * 2 + i, key) >> (key & 16);
  }
  __device__ bool any() const {  // of the whole warp
    unsigned bits = 0;
#pragma unroll
    for (int n = 0; n < Rows / 8; ++n) bits |= words[n][0] | words[n][1];
    return __any_sync(kAllLanes, (bits & 0xffff) != 0);
  }
  __device__ bool operator()(int n, int i) const {
    return words[n][i % 2] >> (int(threadIdx.x) % 32 / 4 + i / 2 * 8) & 1;
  }
};

// Whether a query of the tile at `start` sees one of the block's keys, of which `key` is the first. A barrier.
template <int Rows, int Keys>
__device__ bool any_sees(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t start, int64_t key) {
  constexpr int Words = Keys / 32;  // of a query
  const bool asks = threadIdx.x < Words * Rows;
  const int64_t query = start + threadIdx.x / Words;
  return __syncthreads_or(asks && seen_word(seen, shape, batch, query, key + threadIdx.x % Words * 32) != 0);
}

}  // namespace minillama::kernels
