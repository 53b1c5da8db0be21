// A decoded token in one launch: RoPE of q and of the new k, k and v into the cache, attention over all of it
// (what it means: flash_attention.cuh; RoPE: rope.cuh; how a part of the keys is read: flash_decoding_part.cuh).
//
// Row b of the cache holds lengths[b] tokens, of which the first begins[b] are padding and never seen. The new one turns by
// the row lengths[b] - begins[b] of a table, or by a row of its own; it becomes row lengths[b], and sees all and itself.
//
// Cost of a sequence of S tokens: 4 H (S + 1) d FLOPs; compulsory bytes e d (2 S K + 2 H + 4 K) and the row of the table. Of
// the new token v and the turned k stay in shared memory, in the block that has the last part of the keys: it alone uses
// them and writes them down, and nobody reads row lengths[b], so that no block waits for another.
//
//   version 1  three launches and a fourth: rope_v4, a copy of v, flash_decoding_v1, flash_combine_v1. q is written and read
//              once more, the new k and v too, and every row of the batch has the same length
//   version 2  one. Every block turns its own queries; the block of a head that ends last adds the parts, in their order:
//              the same inputs give the same bits, whoever is last. Asserted by tests/test_cuda_attention.py: 1 launch,
//              112 blocks and 1.03 of the compulsory bytes at most for S = 4096, 32 / 8 heads, 16 bits
#pragma once

#include "flash_decoding_part.cuh"
#include "rope.cuh"

namespace minillama::kernels {

// The row of the batch that a block works for: what it holds, and the angles of its new token.
struct DecodedRow {
  int64_t length, begin;
  bool fits;  // a GPU cannot raise an error: a row without room for its token becomes NaN, and nothing is written
  const float2* angles;  // null: there is no such row of the table, and what turns becomes NaN

  __device__ DecodedRow(const NewTokens& token, int64_t batch, int64_t room) {
    length = token.lengths ? token.lengths[batch] : token.length;
    begin = token.begins ? token.begins[batch] : 0;
    fits = begin >= 0 && begin <= length && length < room;
    const int64_t row = token.by_length ? length - begin : batch * token.apart;
    const bool in_table = row >= 0 && row < token.rows;
    angles = in_table ? reinterpret_cast<const float2*>(token.rotations) + row * token.half : nullptr;
  }
};

// A column of a head, turned and rounded as the cache holds it.
template <class T>
__device__ T turned(const T* head, int column, const NewTokens& token, const float2* angles) {
  const int half = int(token.half);
  if (column >= 2 * half) return head[column];
  const int pair = token.interleaved ? column / 2 : column % half;
  const int first = token.interleaved ? column / 2 * 2 : pair, second = token.interleaved ? first + 1 : pair + half;
  const float2 angle = angles ? angles[pair] : float2{NAN, NAN};
  T x0 = head[first], x1 = head[second];
  turn(x0, x1, angle.x, angle.y);
  return column == first ? x0 : x1;
}

// Whether all other blocks of this head are done: the last one sees what they wrote. Leaves the counter at 0.
__device__ inline bool is_last(unsigned* arrivals, int parts) {
  __threadfence();
  __syncthreads();  // between blocks: what all threads of this one wrote is seen before its arrival
  const unsigned most = unsigned(parts - 1);
  const bool last = __syncthreads_or(threadIdx.x == 0 && atomicInc(arrivals, most) == most);
  __threadfence();
  return last;
}

template <class T, int D, int R>
__global__ void __launch_bounds__(32 * kDecodingWarps, 2)
flash_decoding_v2(Strided q, Strided k, Strided v, CacheRows keys, CacheRows values, NewTokens token, T* out,
                  float* part_out, float2* part_rows, unsigned* arrivals, AttentionShape shape, int parts) {
  __shared__ __align__(16) float Q[R][D], of_warp[kDecodingWarps + 1][R][D];  // the last: of the new token
  __shared__ float2 row_of_warp[kDecodingWarps + 1][R];
  __shared__ float new_key[D];
  const int d = int(shape.width), lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = int(shape.heads / shape.kv_heads);
  const int tiles = (group + R - 1) / R;
  const auto [part, tile, batch] = TileOfHead(parts, 1, shape.kv_heads * tiles);
  const int64_t kv_head = tile / tiles;
  const int first = int(tile % tiles) * R;
  const float c = shape.scale * kLog2E;  // exp(scale s) = 2^(c s)
  const DecodedRow at(token, batch, shape.keys);
  const bool has_new = at.fits && part == parts - 1;

  for (int i = threadIdx.x; i < R * D; i += 32 * kDecodingWarps) {
    const int row = first + i / D, column = i % D;
    const T* head = head_of<T>(q, batch, kv_head * group + row);
    Q[i / D][column] = row < group && column < d ? float(turned(head, column, token, at.angles)) : 0.0f;
  }
  T* cached_keys = static_cast<T*>(keys.data) + batch * keys.batch + kv_head * keys.head;
  T* cached_values = static_cast<T*>(values.data) + batch * values.batch + kv_head * values.head;
  for (int column = threadIdx.x; has_new && column < D; column += 32 * kDecodingWarps) {
    T key = T(0.0f), value = T(0.0f);
    if (column < d) key = turned(head_of<T>(k, batch, kv_head), column, token, at.angles);
    if (column < d) value = head_of<T>(v, batch, kv_head)[column];
    if (column < d && first == 0) {  // of the tiles of a head one writes
      cached_keys[at.length * keys.row + column] = key;
      cached_values[at.length * values.row + column] = value;
    }
    new_key[column] = float(key);
#pragma unroll
    for (int r = 0; r < R; ++r) of_warp[kDecodingWarps][r][column] = float(value);
  }
  __syncthreads();  // the queries and the new token are complete

  const int64_t held = at.fits ? at.length - at.begin : 0;
  attend_to_part<T, D, R>(Q, cached_keys + at.begin * keys.row, keys.row, cached_values + at.begin * values.row, values.row,
                          d, part_begin(held, part, parts), part_begin(held, part + 1, parts), c,
                          [](int64_t) { return (1u << R) - 1; }, of_warp, row_of_warp);
  for (int r = warp; has_new && r < R; r += kDecodingWarps) {
    float score = 0;
    for (int column = lane; column < D; column += 32) score += Q[r][column] * new_key[column];
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) score += __shfl_xor_sync(kWarpLanes, score, lanes);
    if (lane == 0) row_of_warp[kDecodingWarps][r] = float2{score, 1};
  }
  __syncthreads();  // what the warps found is complete

  const int rows = group - first < R ? group - first : R, sources = kDecodingWarps + (has_new ? 1 : 0);
  const int64_t row_of_head = batch * shape.heads + kv_head * group + first;
  for (int i = threadIdx.x; i < rows * D; i += 32 * kDecodingWarps) {
    const int row = i / D, column = i % D;
    if (column >= d) continue;
    const MergedRow all(&row_of_warp[0][row], R, &of_warp[0][row][column], R * D, sources, c);
    const int64_t place = (row_of_head + row) * parts + part;
    part_out[place * d + column] = all.value;
    if (column == 0) part_rows[place] = float2{all.highest, all.sees_any ? all.sum : -1};
  }
  if (!is_last(arrivals + batch * shape.kv_heads * tiles + tile, parts)) return;
  for (int i = threadIdx.x; i < rows * D; i += 32 * kDecodingWarps) {
    const int64_t row = row_of_head + i / D, column = i % D;
    if (column >= d) continue;
    const MergedRow all(part_rows + row * parts, 1, part_out + row * parts * d + column, d, parts, c);
    out[row * d + column] = T(at.fits ? all.value / all.sum : NAN);
  }
}

void flash_decoding_append(DType dtype, Strided q, Strided k, Strided v, CacheRows keys, CacheRows values,
                           NewTokens token, void* out, float* part_out, float* part_rows, unsigned* arrivals,
                           AttentionShape shape, void* stream_) {
  if (shape.batch * shape.heads == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_);
  auto* of_parts = reinterpret_cast<float2*>(part_rows);
  const int parts = int(decoding_parts(shape));
  const int64_t group = shape.heads / shape.kv_heads;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width(shape.width, [&](auto width) {
      constexpr int D = decltype(width)::value;
      with_rows<D>(group, [&](auto packed) {
        constexpr int R = decltype(packed)::value;
        const dim3 grid = tile_grid(parts, 1, (group + R - 1) / R * shape.kv_heads, shape.batch);
        LAUNCH((flash_decoding_v2<T, D, R>), grid, 32 * kDecodingWarps, 0, stream)(
            q, k, v, keys, values, token, static_cast<T*>(out), part_out, of_parts, arrivals, shape, parts);
      });
    });
  });
  check_launch("flash_decoding_append");
}

}  // namespace minillama::kernels
