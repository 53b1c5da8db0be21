// The gradients of flash attention for heads of 129 to 256 columns, version 2: all products on tensor cores, for bf16
// and fp16 (the formulas: flash_attention_backward.cuh; the forward pass: flash_wide.cuh; masks, and how P is formed again:
// flash_backward_tensor_cores.cuh).
//
// A wide head is two narrow ones that share their scores, and the gradients of these:
//   S = q1 k1^T + q2 k2^T,  dP = dO1 v1^T + dO2 v2^T,  dQ1 = dS k1,  dQ2 = dS k2,  and so dK and dV.
// Two warps take 16 rows together, either of them one half of the columns, W = 96 or 128. Each forms its part of S and dP,
// lays it into shared memory for the other and adds the other's to it: the same sums in both, for x + y = y + x. The rest is
// as for a head of W columns, registers too: one warp alone would need 128 for dQ, and 256 for dK and dV.
//
//   flash_wide_dq_v2   A block takes 64 queries of one head, 8 warps, and walks over tiles of 16 keys and values. q and dO
//                      stay in registers. Shared, for D = 256: two stages of 16 KiB, 16 KiB of parts: 48 KiB.
//   flash_wide_dkv_v2  A block takes 64 keys of one head and walks over tiles of 16 queries of every head that shares them.
//                      v stays in registers, k in shared memory: 80.4 KiB, which a launch asks for. Within the 99 KiB of a
//                      block on 8.9 and 12.0; there and elsewhere 8 warps, one block, are what the registers allow.
//
// Cost of a tile: a warp's 48 or 64 products (D = 256), two barriers. Bytes as for narrower heads: for each 64 queries of a
// head k and v once; for each 64 keys q, dO and 12 bytes a row of all heads of the group. No atomics.
#pragma once

#include "flash_backward_tensor_cores.cuh"
#include "flash_wide.cuh"

namespace minillama::kernels {

constexpr int kPairedWarps = 8, kPairedThreads = 32 * kPairedWarps, kPairedTile = 16;  // of a tile: keys, or queries
using Parts = float4[kPairedWarps][kPairedTile / 4][32];  // S and dP of each warp

// To a warp's part of S and dP its partner's is added.
__device__ inline void add_partners(float (&S)[kPairedTile / 8][4], float (&dP)[kPairedTile / 8][4], Parts& parts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int n = 0; n < kPairedTile / 8; ++n) {
    const float4 s = {S[n][0], S[n][1], S[n][2], S[n][3]}, dp = {dP[n][0], dP[n][1], dP[n][2], dP[n][3]};
    parts[warp][2 * n][lane] = s, parts[warp][2 * n + 1][lane] = dp;
  }
  __syncthreads();  // the parts are complete
#pragma unroll
  for (int n = 0; n < kPairedTile / 8; ++n) {
    const float4 s = parts[warp ^ 1][2 * n][lane], dp = parts[warp ^ 1][2 * n + 1][lane];
    S[n][0] += s.x, S[n][1] += s.y, S[n][2] += s.z, S[n][3] += s.w;
    dP[n][0] += dp.x, dP[n][1] += dp.y, dP[n][2] += dp.z, dP[n][3] += dp.w;
  }
}

__device__ inline int within(int64_t x, int most) { return x < 0 ? 0 : x < most ? int(x) : most; }

// What a query sees of the 16 keys from `start` on, a bit each.
__device__ inline unsigned seen_of_16(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t query,
                                      int64_t start) {
  return seen_word(seen, shape, batch, query, start) >> (start & 16) & 0xffff;
}

// The first tile of 16 keys from `start` on of which one of the block's queries sees any. A barrier for each that is looked at.
__device__ inline int64_t next_16_seen(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t first,
                                       int64_t start, int64_t end) {
  const int64_t query = first + threadIdx.x % kQueries;
  while (start < end && !__syncthreads_or(seen_of_16(seen, shape, batch, query, start) != 0)) start += kPairedTile;
  return start;
}

// Whether one of the 16 queries from `start` on sees any of the block's keys, of which `first` is the first. A barrier.
__device__ inline bool any_of_64_seen(const unsigned* seen, const AttentionShape& shape, int64_t batch, int64_t start,
                                      int64_t first) {
  const int64_t query = start + threadIdx.x / 2 % kPairedTile;
  return __syncthreads_or(seen_word(seen, shape, batch, query, first + threadIdx.x % 2 * 32) != 0);
}

// Both halves of a matrix's rows, one behind the other.
template <int Rows, int W, class T>
__device__ void copy_halves(T* to, const T* data, int64_t stride, int64_t first, int64_t rows, int d, bool aligned) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    copy_piece<Rows, W, kPairedWarps>(to + half * Rows * W, data + half * W, stride, first, rows, d - half * W, aligned);
}

// A warp's 16 rows of results times a factor, rounded, by way of shared memory.
template <int W, class T>
__device__ void store_results(T* piece, const float (&C)[W / 8][4], float factor, T* to, int64_t rows, int d, int width,
                              bool aligned) {
  const int lane = threadIdx.x % 32;
  __syncwarp();  // nobody reads what lies there any more
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < W / 8; ++n)
      *reinterpret_cast<unsigned*>(piece + swizzled<W>(lane / 4 + 8 * half, n) + lane % 4 * 2) =
          packed<T>(C[n][2 * half] * factor, C[n][2 * half + 1] * factor);
  __syncwarp();  // the rows are complete
  store_piece<W>(piece, to, rows, d, width, aligned);
}

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(kPairedThreads, 1)
flash_wide_dq_v2(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
                 const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dq,
                 AttentionShape shape, bool aligned) {
  constexpr int W = D / 2, Keys = kPairedTile, Side = Keys * W;
  __shared__ __align__(128) T tiles[2 * 4 * Side];  // of either stage: keys, then values, halves one behind the other
  __shared__ Parts parts;
  static_assert(sizeof tiles == kQueries * D * sizeof(T));  // the queries come this way too, and the results
  const int lane = threadIdx.x % 32, pair = threadIdx.x / 64, side = threadIdx.x / 32 % 2, d = int(shape.width);
  const TileOfHead of(shape.queries, kQueries, shape.heads);
  const int64_t first = of.first, head = of.head, batch = of.batch;
  const int64_t kv_head = unsigned(head) / unsigned(shape.heads / shape.kv_heads), mine = first + 16 * pair;
  const int64_t of_head = (batch * shape.heads + head) * shape.queries, query = mine + lane / 4;
  const T *keys = head_of<T>(k, batch, kv_head), *values = head_of<T>(v, batch, kv_head);
  const int64_t end = keys_end(shape, first, kQueries);
  const float c = shape.scale * kLog2E;
  T* my_rows = tiles + (side * kQueries + 16 * pair) * W;

  unsigned Q[W / 16][4], dO[W / 16][4];
  const auto load = [&](unsigned (&A)[W / 16][4], const Strided& x) {
    copy_halves<kQueries, W>(tiles, head_of<T>(x, batch, head), x.row, first, shape.queries, d, aligned);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows are complete
    load_operands<W>(A, my_rows, 0);
    __syncthreads();  // and read by all
  };
  load(Q, q);
  load(dO, d_out);
  const auto copy = [&](int64_t start, int stage) {
    T* to = tiles + stage * 4 * Side;
    copy_halves<Keys, W>(to, keys, k.row, start, shape.keys, d, aligned);
    copy_halves<Keys, W>(to + 2 * Side, values, v.row, start, shape.keys, d, aligned);
    cp_async_commit();
  };
  const auto numbers_of = [&](int64_t i) {
    return i < shape.queries ? RowNumbers(rows[of_head + i], delta[of_head + i], c) : RowNumbers(float2{0, 1}, 0, c);
  };
  const RowNumbers row[2] = {numbers_of(query), numbers_of(query + 8)};
  float dQ[W / 8][4] = {};
  int64_t start = 0, next;
  int stage = 0;
  if constexpr (Masked) start = next_16_seen(seen, shape, batch, first, 0, end);
  if (start < end) copy(start, 0);
  for (; start < end; start = next, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is complete, and the other stage is read by all
    next = start + Keys;
    if constexpr (Masked) next = next_16_seen(seen, shape, batch, first, next, end);
    if (next < end) copy(next, stage ^ 1);
    const bool works = mine < shape.queries && seen_by(shape, mine + 15) > start;  // somebody here sees some of it
    const T *tile_k = tiles + (stage * 4 + side) * Side, *tile_v = tile_k + 2 * Side;
    float S[Keys / 8][4] = {}, dP[Keys / 8][4] = {};
    if (works) scores_of<W>(S, Q, tile_k), scores_of<W>(dP, dO, tile_v);
    add_partners(S, dP, parts);
    if (!works) continue;
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) share_and_gradient(S[n][i], dP[n][i], row[i / 2], c);
    if constexpr (Masked) {
      const unsigned words[2] = {seen_of_16(seen, shape, batch, query, start),
                                 seen_of_16(seen, shape, batch, query + 8, start)};
      keep_seen(S, dP, [&](int n, int i) { return words[i / 2] >> (8 * n + lane % 4 * 2 + i % 2) & 1; });
    } else if (seen_by(shape, mine) < start + Keys) {
      const int begins[2] = {}, ends[2] = {within(seen_by(shape, query) - start, Keys),
                                           within(seen_by(shape, query + 8) - start, Keys)};
      keep_columns(S, dP, begins, ends);
    }
    add_values<W>(dQ, dP, tile_k);
  }
  __syncthreads();  // the last tile is read by all: its place is the results'
  store_results<W>(my_rows, dQ, shape.scale, dq + (of_head + mine) * d + side * W, shape.queries - mine, d, d - side * W,
                   aligned);
}

template <class T, int W>
struct WideKeys {  // shared memory of a block of flash_wide_dkv_v2
  T k[2 * kQueries * W], tiles[2][4 * kPairedTile * W];  // of either stage: queries, then gradients, in halves
  Parts parts;
  float2 rows[2][kPairedTile];
  float delta[2][kPairedTile];
};

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(kPairedThreads, 1)
flash_wide_dkv_v2(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
                  const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dk,
                  T* __restrict__ dv, AttentionShape shape, bool aligned) {
  constexpr int W = D / 2, Keys = kQueries, Walked = kPairedTile, Side = Walked * W;
  using Shared = WideKeys<T, W>;
  DYNAMIC_SHARED(Shared, shared);
  const int lane = threadIdx.x % 32, pair = threadIdx.x / 64, side = threadIdx.x / 32 % 2, d = int(shape.width);
  const TileOfHead of(shape.keys, Keys, shape.kv_heads);
  const int64_t first = of.first, mine = first + 16 * pair, shift = shape.keys - shape.queries;
  const int batch = int(of.batch), kv_head = int(of.head), group = int(shape.heads / shape.kv_heads);  // a launch's blocks
  const int64_t begin = shape.causal && first > shift ? (first - shift) / Walked * Walked : 0;
  const int last_head = (kv_head + 1) * group;
  const float c = shape.scale * kLog2E;
  const int of_mine = (side * Keys + 16 * pair) * W;

  copy_halves<Keys, W>(shared->k, head_of<T>(k, batch, kv_head), k.row, first, shape.keys, d, aligned);
  copy_halves<Keys, W>(shared->tiles[0], head_of<T>(v, batch, kv_head), v.row, first, shape.keys, d, aligned);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // keys and values are complete
  unsigned V[W / 16][4];
  load_operands<W>(V, shared->tiles[0] + of_mine, 0);
  __syncthreads();  // the values are read by all
  const auto copy = [&](int head, int64_t start, int stage) {
    const int64_t of_head = (batch * shape.heads + head) * shape.queries;
    copy_halves<Walked, W>(shared->tiles[stage], head_of<T>(q, batch, head), q.row, start, shape.queries, d, aligned);
    copy_halves<Walked, W>(shared->tiles[stage] + 2 * Side, head_of<T>(d_out, batch, head), d_out.row, start, shape.queries,
                           d, aligned);
    copy_numbers<Walked>(shared->rows[stage], shared->delta[stage], rows + of_head, delta + of_head, start, shape.queries);
    cp_async_commit();
  };
  float dK[W / 8][4] = {}, dV[W / 8][4] = {};
  int64_t start = begin;
  int head = kv_head * group, stage = 0;
  const auto step = [&] {
    start += Walked;
    if (start >= shape.queries) start = begin, ++head;
  };
  const auto pass_unseen = [&] {  // on to a tile of which somebody sees a key
    if constexpr (Masked)
      while (head < last_head && !any_of_64_seen(seen, shape, batch, start, first)) step();
  };
  pass_unseen();
  if (begin < shape.queries && head < last_head) copy(head, start, 0);
  while (begin < shape.queries && head < last_head) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is complete, and the other stage is read by all
    const int64_t now = start;
    const int here = stage;
    stage ^= 1;
    step();
    pass_unseen();
    if (head < last_head) copy(head, start, stage);
    const bool works = mine < shape.keys && !(shape.causal && now + Walked - 1 + shift < mine);  // somebody sees some
    const T *tile_q = shared->tiles[here] + side * Side, *tile_do = tile_q + 2 * Side;
    float S[Walked / 8][4] = {}, dP[Walked / 8][4] = {};
    if (works) {
      scores_of_keys<W>(S, shared->k + of_mine, 0, tile_q);
      scores_of<W>(dP, V, tile_do);
    }
    add_partners(S, dP, shared->parts);
    if (!works) continue;
#pragma unroll
    for (int n = 0; n < Walked / 8; ++n) {
      const int two = 8 * n + lane % 4 * 2;
      const float4 of_two = *reinterpret_cast<const float4*>(&shared->rows[here][two]);
      const float2 deltas = *reinterpret_cast<const float2*>(&shared->delta[here][two]);
      const RowNumbers row[2] = {RowNumbers(float2{of_two.x, of_two.y}, deltas.x, c),
                                 RowNumbers(float2{of_two.z, of_two.w}, deltas.y, c)};
#pragma unroll
      for (int i = 0; i < 4; ++i) share_and_gradient(S[n][i], dP[n][i], row[i % 2], c);
    }
    if constexpr (Masked) {
      keep_seen(S, dP, SeeingQueries<Walked>(seen, shape, batch, now, mine));
    } else if (now + Walked > shape.queries || (shape.causal && now + shift < mine + 15)) {
      const int64_t from = shape.causal ? mine + lane / 4 - shift - now : -8;  // the query here that sees the key first
      const int begins[2] = {within(from, Walked), within(from + 8, Walked)}, left = within(shape.queries - now, Walked);
      keep_columns(S, dP, begins, {left, left});
    }
    add_values<W>(dV, S, tile_do);
    add_values<W>(dK, dP, tile_q);
  }
  const int64_t place = ((batch * shape.kv_heads + kv_head) * shape.keys + mine) * d + side * W, left = shape.keys - mine;
  store_results<W>(shared->k + of_mine, dK, shape.scale, dk + place, left, d, d - side * W, aligned);
  store_results<W>(shared->k + of_mine, dV, 1, dv + place, left, d, d - side * W, aligned);
}

// For widths above kNarrow; `bits` are a mask's or null.
template <class T>
void flash_wide_backward(Strided q, Strided k, Strided v, Strided d_out, const unsigned* bits, const float2* rows,
                         const float* delta, T* dq, T* dk, T* dv, const AttentionShape& shape, cudaStream_t stream) {
  const bool aligned = fits_copies({q, k, v, d_out}, {dq, dk, dv}, shape.width);
  const auto launch = [&](auto width, auto masked) {
    constexpr int D = decltype(width)::value;
    constexpr bool M = decltype(masked)::value;
    constexpr int bytes = sizeof(WideKeys<T, D / 2>);
    static_assert(bytes <= 99 * 1024);  // what a block on 8.6, 8.9 and 12.0 may ask for
    cudaFuncSetAttribute(flash_wide_dkv_v2<T, D, M>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    check_launch("flash_attention_backward: shared memory of a block");
    if (shape.batch * shape.heads * shape.queries > 0)
      LAUNCH((flash_wide_dq_v2<T, D, M>), tile_grid(shape.queries, kQueries, shape.heads, shape.batch), kPairedThreads, 0,
             stream)(q, k, v, d_out, bits, rows, delta, dq, shape, aligned);
    if (shape.batch * shape.kv_heads * shape.keys > 0)
      LAUNCH((flash_wide_dkv_v2<T, D, M>), tile_grid(shape.keys, kQueries, shape.kv_heads, shape.batch), kPairedThreads,
             bytes, stream)(q, k, v, d_out, bits, rows, delta, dk, dv, shape, aligned);
  };
  const auto choose = [&](auto width) { bits ? launch(width, std::true_type{}) : launch(width, std::false_type{}); };
  if (shape.width <= 192) return choose(std::integral_constant<int, 192>{});
  choose(std::integral_constant<int, 256>{});
}

}  // namespace minillama::kernels
