// Attention without the T x S matrix (arXiv 2205.14135; the order of loops is that of 2307.08691):
//   S = scale q k^T,  P = softmax(S),  O = P v,  LSE = log sum exp(S).  Backward: flash_attention_backward.cuh.
//
// Cost for element size e: 4 B H T S d FLOPs, half of it when causal; compulsory bytes e d (2 T H + 2 S K) + 4 T H, times
// B. k and v are read once for every 16 queries of every query head, of heads wider than 128 columns for every 8.
//
// Query head h reads key head h / (H / K). Causal is bottom-right: query i sees key j <= i + S - T, and of these what the
// mask leaves; its bits, `seen`, hold both (flash_mask.cuh). A query that sees nothing gives O = 0 and LSE = +infinity. All
// sums in fp32. Beside LSE, a row's maximum (before the scale) and sum are kept apart: of scores near 1e4 their rounded LSE
// would leave the backward pass too few bits.
//
// NaN: a query, key or value that is NaN and seen makes NaN, as it does written out. In tiles that a query sees nothing of
// nothing is read; within a tile, a value that is not seen has weight 0, and 0 NaN is NaN, as it is written out.
//
//   version 1: a block takes 16 queries (wider heads: 8), four threads a row, and walks over tiles of as many keys and
//   values in shared memory (fp32, rows padded by one word: a column is then free of bank conflicts). Scores are shared by
//   the row's four threads; each keeps every fourth column of O in registers. No tensor cores, one tile in flight.
#pragma once

#include "../launch.h"

namespace minillama::kernels {

constexpr int kTeam = 4;  // threads of a row
template <int D>
constexpr int kTile = D <= kNarrow ? 16 : 8;  // rows of a tile: four of them are less than 48 KiB
template <int D>
constexpr int kTileThreads = kTile<D> * kTeam;
constexpr int kBlocks = 4;  // blocks an SM must hold: leaves each thread 255 registers; unsaid, ptxas spills on sm_90
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <int D>
using Tile = float[kTile<D>][D + 1];

// Rows first ... of a (rows, width) matrix; what lies beyond its rows or columns becomes 0, not garbage: a
// NaN there would survive a weight of 0.
template <int D, class T>
__device__ void load_tile(Tile<D>& tile, const T* data, int64_t stride, int64_t first, int64_t rows, int width) {
  for (int i = threadIdx.x; i < kTile<D> * D; i += kTileThreads<D>) {
    const int row = i / D, column = i % D;
    const bool inside = first + row < rows && column < width;
    tile[row][column] = inside ? float(data[(first + row) * stride + column]) : 0.0f;
  }
}

template <int D>
__device__ float dot(const float (&a)[D + 1], const float (&b)[D + 1]) {
  float even = 0, odd = 0;
  for (int c = 0; c < D; c += 2) {
    even += a[c] * b[c];
    odd += a[c + 1] * b[c + 1];
  }
  return even + odd;
}

__device__ inline float team_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float team_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ inline bool sees(const AttentionShape& shape, int64_t query, int64_t key) {
  return key < shape.keys && (!shape.causal || key <= query + shape.keys - shape.queries);
}

__device__ inline int64_t words_of(const AttentionShape& shape) { return (shape.keys + 31) / 32; }  // for each query

// A word of the mask's bits (flash_mask.cuh): 32 keys of a query, `key` among them. Beyond the last ones nothing is seen.
__device__ inline unsigned seen_word(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t query,
                                     int64_t key) {
  if (query >= shape.queries || key >= shape.keys) return 0;
  return seen[(batch * words_of(shape) + key / 32) * shape.queries + query];
}

// The same for one key, with or without a mask.
__device__ inline bool sees(const AttentionShape& shape, const unsigned* seen, int64_t batch, int64_t query, int64_t key) {
  return seen ? seen_word(seen, shape, batch, query, key) >> (key & 31) & 1 : sees(shape, query, key);
}

// The first key that none of the queries of this tile sees.
__device__ inline int64_t keys_end(const AttentionShape& shape, int64_t first_query, int tile) {
  const int64_t last_seen = first_query + tile - 1 + shape.keys - shape.queries;
  return shape.causal && last_seen + 1 < shape.keys ? last_seen + 1 : shape.keys;
}

// A block's work: one tile of the rows of one head. All blocks lie in one dimension: the others end at 65,535.
struct TileOfHead {
  int64_t first, head, batch;  // the tile's first row

  __device__ TileOfHead(int64_t rows, int rows_of_tile, int64_t heads) {
    const unsigned tiles = unsigned((rows + rows_of_tile - 1) / rows_of_tile), rest = blockIdx.x / tiles;
    first = int64_t(blockIdx.x % tiles) * rows_of_tile, head = rest % unsigned(heads), batch = rest / unsigned(heads);
  }
};

inline dim3 tile_grid(int64_t rows, int rows_of_tile, int64_t heads, int64_t batch) {
  return dim3(unsigned((rows + rows_of_tile - 1) / rows_of_tile * heads * batch));
}

template <class T>
__device__ const T* head_of(const Strided& x, int64_t batch, int64_t head) {
  return static_cast<const T*>(x.data) + batch * x.batch + head * x.head;
}

template <class T, int D>
__global__ void __launch_bounds__(kTileThreads<D>, kBlocks)
flash_attention_v1(Strided q, Strided k, Strided v, const unsigned* __restrict__ seen, T* __restrict__ out, float* __restrict__ lse,
                   float2* __restrict__ rows, AttentionShape shape) {
  __shared__ Tile<D> Q, K, V;
  __shared__ float P[kTile<D>][kTile<D> + 1];
  const int row = threadIdx.x / kTeam, member = threadIdx.x % kTeam, d = int(shape.width);
  const auto [first, head, batch] = TileOfHead(shape.queries, kTile<D>, shape.heads);
  const int64_t kv_head = head / (shape.heads / shape.kv_heads), query = first + row;
  const T *keys = head_of<T>(k, batch, kv_head), *values = head_of<T>(v, batch, kv_head);
  load_tile<D>(Q, head_of<T>(q, batch, head), q.row, first, shape.queries, d);
  const float c = shape.scale * kLog2E;  // exp(scale s) = 2^(c s)
  float m = -INFINITY, l = 0, saw = 0, O[D / kTeam] = {};
  for (int64_t start = 0; start < keys_end(shape, first, kTile<D>); start += kTile<D>) {
    __syncthreads();  // nobody reads the previous tile any more
    load_tile<D>(K, keys, k.row, start, shape.keys, d);
    load_tile<D>(V, values, v.row, start, shape.keys, d);
    __syncthreads();  // the tile is complete, and before the first one so is Q

    float s[kTile<D> / kTeam], highest = m;
    for (int i = 0; i < kTile<D> / kTeam; ++i) {
      const int key = member + kTeam * i;
      const bool visible = sees(shape, seen, batch, query, start + key);
      s[i] = visible ? dot<D>(Q[row], K[key]) : -INFINITY;
      saw = visible ? 1 : saw;
      highest = fmaxf(highest, s[i]);
    }
    highest = team_max(highest);
    // The difference first, then the factor: exp2f(s c - highest c) would be other than 1 for the highest score, and for
    // an old maximum that stays, wherever nvcc fuses one of the two products with the subtraction.
    const float base = highest == -INFINITY ? 0 : highest;  // -inf - -inf would be NaN
    const float alpha = exp2f((m - base) * c);              // what earlier sums are worth under the new maximum
    l *= alpha;
    for (int i = 0; i < kTile<D> / kTeam; ++i) {
      const float p = exp2f((s[i] - base) * c);
      P[row][member + kTeam * i] = p;
      l += p;
    }
    __syncwarp();  // a row of P belongs to four threads of one warp
#pragma unroll
    for (int e = 0; e < D / kTeam; ++e) {
      float sum = 0;
      for (int j = 0; j < kTile<D>; ++j) sum += P[row][j] * V[j][member + kTeam * e];
      O[e] = O[e] * alpha + sum;
    }
    m = highest;
  }
  l = team_sum(l);
  const bool sees_any = team_max(saw) > 0;
  if (query >= shape.queries) return;
  const int64_t place = (batch * shape.heads + head) * shape.queries + query;
#pragma unroll
  for (int e = 0; e < D / kTeam; ++e)
    if (member + kTeam * e < d) out[place * d + member + kTeam * e] = T(sees_any ? O[e] / l : 0.0f);
  if (member != 0) return;
  lse[place] = sees_any ? m * shape.scale + logf(l) : INFINITY;
  rows[place] = float2{m, l};
}

// visit(D) with the smallest compiled width that holds `width` columns.
template <int Widest = kMaxHeadWidth, class Visit>
void with_width(int64_t width, Visit visit) {
  if (width <= 32) return visit(std::integral_constant<int, 32>{});
  if (width <= 64) return visit(std::integral_constant<int, 64>{});
  if (width <= 128) return visit(std::integral_constant<int, 128>{});
  if constexpr (Widest > 128) visit(std::integral_constant<int, 256>{});
}

}  // namespace minillama::kernels
