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

#include "flash_attention.cuh"

namespace minillama::kernels {

constexpr int kDecodingWarps = 4, kPartStep = 16;  // of a block; a part begins at a multiple of so many keys
// Keys that a warp takes at a time, and elements of a value that a lane takes: with more, a thread needs 256 registers.
template <int D, int R>
constexpr int kStepKeys = R * D >= 256 ? 8 : 16;
template <class T, int R>
constexpr int kValueChunk = R > 4 && sizeof(T) == 2 ? 4 : 16 / sizeof(T);
constexpr unsigned kWarpLanes = 0xffffffffu;

template <class T, int N>
struct alignas(N * sizeof(T)) Chunk {
  T x[N];
};

template <int N, class T>
__device__ Chunk<T, N> load_chunk(const T* from, bool wanted) {
  return wanted ? *reinterpret_cast<const Chunk<T, N>*>(from) : Chunk<T, N>{};
}

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

// One column of a row, of `count` parts of it, which are added in their order. A sum of -1 says that its part sees no key.
struct MergedRow {
  float highest = -INFINITY, sum = 0, value = 0;
  bool sees_any = false;

  __device__ MergedRow(const float2* sums, int sums_apart, const float* values, int values_apart, int count, float c) {
    for (int i = 0; i < count; ++i) highest = fmaxf(highest, sums[i * sums_apart].x);
    const float base = highest == -INFINITY ? 0 : highest;  // -inf - -inf would be NaN
    for (int i = 0; i < count; ++i) {
      const float2 part = sums[i * sums_apart];
      if (part.y == -1) continue;
      const float weight = exp2f((part.x - base) * c);
      sum += part.y * weight;
      value += values[int64_t(i) * values_apart] * weight;
      sees_any = true;
    }
  }
};

__device__ inline int64_t part_begin(int64_t keys, int64_t part, int parts) {
  return part == parts ? keys : keys * part / parts / kPartStep * kPartStep;
}

template <class T, int D, int R>
__global__ void __launch_bounds__(32 * kDecodingWarps, 2)
flash_decoding_v1(Strided q, Strided k, Strided v, AttentionMask mask, float* __restrict__ part_out,
                  float2* __restrict__ part_rows, AttentionShape shape, int parts) {
  constexpr int N = 16 / sizeof(T), kPieces = D / (kTeam * N);       // of a key, for a lane
  constexpr int V = kValueChunk<T, R>, kAcross = D / V, kTogether = 32 / kAcross;  // lanes of a value, values at once
  constexpr int kStep = kStepKeys<D, R>, kEach = kStep * kTeam / 32;  // keys of a warp, and of a team of lanes
  __shared__ __align__(16) float Q[R][D], of_warp[kDecodingWarps][R][D];
  __shared__ float2 row_of_warp[kDecodingWarps][R];
  __shared__ DecodingRows<R> rows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = lane % kTeam, d = int(shape.width);
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

  const T *keys = head_of<T>(k, batch, kv_head), *values = head_of<T>(v, batch, kv_head);
  const int64_t end = part_begin(shape.keys, part + 1, parts);
  float O[R][V] = {}, highest[R], sum[R] = {};
  unsigned seen_yet = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) highest[r] = -INFINITY;
#pragma unroll 1
  for (int64_t start = part_begin(shape.keys, part, parts) + warp * kStep; start < end;
       start += kDecodingWarps * kStep) {
    unsigned seen[kEach], wanted[kEach];  // of this lane's keys: the rows that see them; of all: whether any does
    Chunk<T, N> K[kEach][kPieces];
    Chunk<T, V> values_of[kStep / kTogether];
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int64_t key = start + 8 * u + lane / kTeam;
      seen[u] = key < end ? rows_that_see(rows, key, mask.data != nullptr, shape.queries == 1) : 0;
      seen_yet |= seen[u];
      wanted[u] = __ballot_sync(kWarpLanes, seen[u] != 0);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int column = (member + kTeam * i) * N;
        K[u][i] = load_chunk<N>(keys + key * k.row + column, seen[u] != 0 && column < d);
      }
    }
#pragma unroll
    for (int j = 0; j < kStep / kTogether; ++j) {
      const int key = j * kTogether + lane / kAcross, column = lane % kAcross * V;
      const bool there = wanted[key / 8] >> (key % 8 * kTeam) & 1;
      values_of[j] = load_chunk<V>(values + (start + key) * v.row + column, there && column < d);
    }

    float p[kEach][R] = {};  // scores, then their exponentials
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < N; e += 4) {
          const float4 x = *reinterpret_cast<const float4*>(&Q[r][(member + kTeam * i) * N + e]);
#pragma unroll
          for (int u = 0; u < kEach; ++u) {
            const auto& y = K[u][i].x;
            p[u][r] += x.x * float(y[e]) + x.y * float(y[e + 1]) + x.z * float(y[e + 2]) + x.w * float(y[e + 3]);
          }
        }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float now = highest[r];
#pragma unroll
      for (int u = 0; u < kEach; ++u) {
        const float score = team_sum(p[u][r]);
        p[u][r] = seen[u] >> r & 1 ? score : -INFINITY;
        now = fmaxf(now, p[u][r]);
      }
#pragma unroll
      for (int lanes = kTeam; lanes < 32; lanes *= 2) now = fmaxf(now, __shfl_xor_sync(kWarpLanes, now, lanes));
      // The difference first, then the factor: as in version 1.
      const float base = now == -INFINITY ? 0 : now, alpha = exp2f((highest[r] - base) * c);
      sum[r] *= alpha;
#pragma unroll
      for (int u = 0; u < kEach; ++u) {
        p[u][r] = exp2f((p[u][r] - base) * c);
        sum[r] += p[u][r];
      }
#pragma unroll
      for (int e = 0; e < V; ++e) O[r][e] *= alpha;
      highest[r] = now;
    }
#pragma unroll
    for (int j = 0; j < kStep / kTogether; ++j)
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int key = (j * kTogether) % 8 + lane / kAcross;  // of the eight
        const float weight = __shfl_sync(kWarpLanes, p[j * kTogether / 8][r], key * kTeam);
#pragma unroll
        for (int e = 0; e < V; ++e) O[r][e] += weight * float(values_of[j].x[e]);
      }
  }

  seen_yet = __reduce_or_sync(kWarpLanes, seen_yet);
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int lanes = kTeam; lanes < 32; lanes *= 2) sum[r] += __shfl_xor_sync(kWarpLanes, sum[r], lanes);
#pragma unroll
    for (int e = 0; e < V; ++e) {
#pragma unroll
      for (int lanes = kAcross; lanes < 32; lanes *= 2) O[r][e] += __shfl_xor_sync(kWarpLanes, O[r][e], lanes);
      if (lane < kAcross) of_warp[warp][r][lane * V + e] = O[r][e];
    }
    if (lane == 0) row_of_warp[warp][r] = float2{highest[r], seen_yet >> r & 1 ? sum[r] : -1};
  }
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
      const auto launch = [&](auto packed) {
        constexpr int R = decltype(packed)::value;
        const dim3 grid = tile_grid(parts, 1, (all_rows + R - 1) / R * shape.kv_heads, shape.batch);
        LAUNCH((flash_decoding_v1<T, D, R>), grid, 32 * kDecodingWarps, 0, stream)(
            q, k, v, mask, part_out, of_parts, shape, parts);
      };
      if (all_rows <= 4) launch(std::integral_constant<int, 4>{});
      if (all_rows > 4) launch(std::integral_constant<int, int(kDecodingRows)>{});
    });
    LAUNCH((flash_combine_v1<T>), dim3(unsigned(count)), (int(shape.width) + 31) / 32 * 32, 0, stream)(
        part_out, of_parts, static_cast<T*>(out), shape, parts);
  });
  check_launch("flash_decoding");
}

}  // namespace minillama::kernels
