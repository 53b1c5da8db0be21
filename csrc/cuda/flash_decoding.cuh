// Flash attention for a model that writes: a few new queries and a long cache (what it means: flash_attention.cuh; the
// order of work is that of arXiv 2205.14135 with the keys split over blocks, then combined by their log sums).
//
// The cache is all the traffic: 2 e d S K bytes a sequence, to be read once, by as many processors as there are.
//
//   packed    The H / K queries of a group (times T) are the rows of one tile, up to 8: a key and a value are read once for
//             all of them.
//   split     The keys of a head are cut into parts until there are 108 blocks; each part leaves, of every row, its
//             unscaled output, its maximum and its sum. A second kernel adds the parts in their order: the same inputs give
//             the same bits.
//   16 bytes  A warp takes 16 keys at a time, or 8. Four lanes read a key, 64 neighbouring bytes a request, and
//             add their parts of the score; d e / 16 lanes read a value (8 rows of 16 bits: twice as many).
//             Keys and values go from memory into registers, those of a step at once: no shared memory, no barrier.
//   masks     Keys that no row of the tile sees are not read: padding on the left, or caches of unequal length.
//
// Bytes beyond the cache: 2 (4 d + 8) H parts for what the parts leave, 2.8 % for S = 4096, 32 / 8 heads and 16 bits.
#pragma once

#include "flash_decoding_part.cuh"

namespace minillama::kernels {

// The rows of a tile: the last key that each may see, -1 where there is no such row, and its mask.
template <int R>
struct DecodingRows {
  int64_t last[R];
  const bool* mask[R];
};

// Which rows see a key, a bit each; one query has one mask for all its heads.
template <int R>
__device__ unsigned rows_that_see(const DecodingRows<R>& rows, int64_t key, bool masked, bool one_query) {
  unsigned bits = 0;
  bool visible = true;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (masked && (r == 0 || (!one_query && rows.last[r] >= 0))) visible = rows.mask[r][key];
    bits |= unsigned(visible && key <= rows.last[r]) << r;
  }
  return bits;
}

template <class T, int D, int R>
__global__ void __launch_bounds__(32 * kDecodingWarps, 2)
flash_decoding_v1(Strided q, Strided k, Strided v, AttentionMask mask, float* __restrict__ part_out,
                  float2* __restrict__ part_rows, AttentionShape shape, int parts) {
  __shared__ __align__(16) float Q[R][D], of_warp[kDecodingWarps][R][D];
  __shared__ float2 row_of_warp[kDecodingWarps][R];
  __shared__ DecodingRows<R> rows;
  const int d = int(shape.width);
  const int64_t group = shape.heads / shape.kv_heads, all_rows = group * shape.queries, tiles = (all_rows + R - 1) / R;
  const auto [part, tile, batch] = TileOfHead(parts, 1, shape.kv_heads * tiles);
  const int64_t kv_head = tile / tiles, first = tile % tiles * R;
  const float c = shape.scale * kLog2E;  // exp(scale s) = 2^(c s)

  for (int i = threadIdx.x; i < R * D; i += 32 * kDecodingWarps) {
    const int64_t row = first + i / D, head = kv_head * group + row / shape.queries, query = row % shape.queries;
    const bool there = row < all_rows && i % D < d;
    Q[i / D][i % D] = there ? float(head_of<T>(q, batch, head)[query * q.row + i % D]) : 0.0f;
  }
  if (threadIdx.x < R) {
    const int64_t row = first + threadIdx.x, query = row % shape.queries;
    const int64_t last = shape.causal ? query + shape.keys - shape.queries : shape.keys - 1;
    rows.last[threadIdx.x] = row < all_rows ? last : -1;
    rows.mask[threadIdx.x] = mask.data + batch * mask.batch + query * mask.query;
  }
  __syncthreads();  // the rows are complete

  const bool masked = mask.data != nullptr, one_query = shape.queries == 1;
  attend_to_part<T, D, R>(
      Q, head_of<T>(k, batch, kv_head), k.row, head_of<T>(v, batch, kv_head), v.row, d,
      part_begin(shape.keys, part, parts), part_begin(shape.keys, part + 1, parts), c,
      [&](int64_t key) { return rows_that_see(rows, key, masked, one_query); }, of_warp, row_of_warp);
  __syncthreads();  // what the warps found is complete
  for (int i = threadIdx.x; i < R * D; i += 32 * kDecodingWarps) {
    const int row = i / D, column = i % D;
    if (first + row >= all_rows || column >= d) continue;
    const MergedRow all(&row_of_warp[0][row], R, &of_warp[0][row][column], R * D, kDecodingWarps, c);
    const int64_t place = ((batch * shape.kv_heads + kv_head) * all_rows + first + row) * parts + part;
    part_out[place * d + column] = all.value;
    if (column == 0) part_rows[place] = float2{all.highest, all.sees_any ? all.sum : -1};
  }
}

// A block for a row: what the parts left becomes the output.
template <class T>
__global__ void flash_combine_v1(const float* __restrict__ part_out, const float2* __restrict__ part_rows,
                                 T* __restrict__ out, AttentionShape shape, int parts) {
  const int64_t row = blockIdx.x;
  const int column = threadIdx.x, d = int(shape.width);
  if (column >= d) return;
  const MergedRow all(part_rows + row * parts, 1, part_out + row * parts * d + column, d, parts, shape.scale * kLog2E);
  out[row * d + column] = T(all.sees_any ? all.value / all.sum : 0.0f);
}

void flash_decoding(DType dtype, Strided q, Strided k, Strided v, AttentionMask mask, void* out, float* part_out,
                    float* part_rows, AttentionShape shape, void* stream_) {
  const int64_t count = shape.batch * shape.heads * shape.queries;
  if (count == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_);
  auto* of_parts = reinterpret_cast<float2*>(part_rows);
  const int parts = int(decoding_parts(shape));
  const int64_t all_rows = shape.heads / shape.kv_heads * shape.queries;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width(shape.width, [&](auto width) {
      constexpr int D = decltype(width)::value;
      with_rows<D>(all_rows, [&](auto packed) {
        constexpr int R = decltype(packed)::value;
        const dim3 grid = tile_grid(parts, 1, (all_rows + R - 1) / R * shape.kv_heads, shape.batch);
        LAUNCH((flash_decoding_v1<T, D, R>), grid, 32 * kDecodingWarps, 0, stream)(
            q, k, v, mask, part_out, of_parts, shape, parts);
      });
    });
    LAUNCH((flash_combine_v1<T>), dim3(unsigned(count)), (int(shape.width) + 31) / 32 * 32, 0, stream)(
        part_out, of_parts, static_cast<T*>(out), shape, parts);
  });
  check_launch("flash_decoding");
}

}  // namespace minillama::kernels
