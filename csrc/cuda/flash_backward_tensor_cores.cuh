// The gradients of flash attention, version 2: all five products on tensor cores, for bf16 and fp16 (version 1, and the
// formulas: flash_attention_backward.cuh; tiles and fragments: flash_fragments.cuh, flash_tensor_cores.cuh).
//
//   flash_dq_v2   A block takes 64 queries of one head, a warp 16 of them, and walks over tiles of keys and values as the
//                 forward pass does. q and dO stay in registers. Of a tile: S = q k^T, dP = dO v^T, then dQ += dS k.
//   flash_dkv_v2  A block takes 64 keys of one head, a warp 16 of them, and walks over tiles of 32 (d > 96: 16) queries of
//                 every head that shares them, in their order. k and v stay in registers. S^T = k q^T and dP^T = v dO^T
//                 are transposed, so that P^T and dS^T are, rounded, operands of dV += P^T dO and dK += dS^T q.
//
// Every tile is read twice from shared memory, by rows and by columns, without a bank conflict. No result needs a sum over
// warps or blocks, and so none an atomic: the same inputs give the same bits. In return S and dP are formed twice, seven
// products instead of five.
//
// P is formed as the forward pass formed it, from exponents that count from the rounded maximum, so that the roundings of
// both cancel. P and dS are rounded to 16 bits for their products, all sums are fp32; 1 / sqrt(d) comes last.
//
// Behind a mask of the caller's own both test its bits, and copy no tile of which nobody in the block has any part.
//
// Bytes: for each 64 queries of a head k and v once; for each 64 keys, q, dO and 12 bytes a row of all heads of the group.
#pragma once

#include "flash_attention_backward.cuh"
#include "flash_tensor_cores.cuh"

namespace minillama::kernels {

template <int D>
constexpr int kWalked = D <= 96 ? 32 : 16;  // queries of a tile: more, and a thread needs more than 255 registers
// Whether the rows of a warp stay in registers, or are loaded anew for each tile, since they would not fit: q and k.
template <int D, bool Masked>
constexpr bool kHeld = D <= 96 || !Masked;
template <int D, bool Masked>
constexpr bool kKeysHeld = D <= (Masked ? 64 : 96);

// What the exponents of a row count from, the reciprocal of their sum, and delta.
struct RowNumbers {
  float base = 0, inverse = 0, delta = 0;

  __device__ RowNumbers() {}
  __device__ RowNumbers(float2 row, float delta_, float c) : base(row.x * c), delta(delta_) {
    inverse = 1 / (row.y * fast_exp2(__fmaf_rn(row.x, c, -base)));
  }
};

// A score and its gradient's product dO v become P and dS.
__device__ inline void share_and_gradient(float& s, float& dp, const RowNumbers& row, float c) {
  s = fast_exp2(__fmaf_rn(s, c, -row.base)) * row.inverse;
  dp = s * (dp - row.delta);
}

__device__ inline int within(int64_t x, int most) { return x < 0 ? 0 : x < most ? int(x) : most; }

// 0 where query and key do not meet, whatever was computed there: row lane / 4 keeps its columns from begins[0] up to
// ends[0], row lane / 4 + 8 those of [1].
template <int N>
__device__ void keep_columns(float (&P)[N][4], float (&dS)[N][4], const int (&begins)[2], const int (&ends)[2]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * n + int(threadIdx.x) % 4 * 2 + i % 2;
      if (column < begins[i / 2] || column >= ends[i / 2]) P[n][i] = dS[n][i] = 0;
    }
}

// The same by a mask's bits: seen(n, i) says whether they meet.
template <int N, class Seen>
__device__ void keep_seen(float (&P)[N][4], float (&dS)[N][4], const Seen& seen) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!seen(n, i)) P[n][i] = dS[n][i] = 0;
}

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(32 * kWarps, 2)
flash_dq_v2(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
            const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dq, AttentionShape shape) {
  constexpr int Keys = kKeys<D>;
  __shared__ __align__(128) T tile_q[kQueries * D], tiles[2][2 * Keys * D];  // of either stage: keys, then values
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = int(shape.width);
  const auto [first, head, batch] = TileOfHead(shape.queries, kQueries, shape.heads);
  const int64_t kv_head = unsigned(head) / unsigned(shape.heads / shape.kv_heads), mine = first + 16 * warp;
  const int64_t of_head = (batch * shape.heads + head) * shape.queries, query = mine + lane / 4;
  const T *keys = head_of<T>(k, batch, kv_head), *values = head_of<T>(v, batch, kv_head);
  const int64_t end = keys_end(shape, first, kQueries);
  const float c = shape.scale * kLog2E;

  int64_t start = 0, next;
  if constexpr (Masked) start = next_seen<D>(seen, shape, batch, first, 0, end);
  copy_tile<kQueries, D>(tile_q, head_of<T>(q, batch, head), q.row, first, shape.queries, d);
  copy_tile<kQueries, D>(tiles[1], head_of<T>(d_out, batch, head), d_out.row, first, shape.queries, d);
  copy_tile<Keys, D>(tiles[0], keys, k.row, start, shape.keys, d);
  copy_tile<Keys, D>(tiles[0] + Keys * D, values, v.row, start, shape.keys, d);
  cp_async_commit();
  RowNumbers row[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (const int64_t i = query + 8 * half; i < shape.queries)
      row[half] = RowNumbers(rows[of_head + i], delta[of_head + i], c);
  cp_async_wait<0>();
  __syncthreads();  // queries and gradients are complete
  unsigned Q[D / 16][4], dO[D / 16][4];
  if constexpr (kHeld<D, Masked>) load_operands<D>(Q, tile_q, 16 * warp);
  load_operands<D>(dO, tiles[1], 16 * warp);
  float dQ[D / 8][4] = {};
  int stage = 0;
  for (; start < end; start = next, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is complete, and the other stage is read by all
    next = start + Keys;
    if constexpr (Masked) next = next_seen<D>(seen, shape, batch, first, next, end);
    if (next < end) {
      copy_tile<Keys, D>(tiles[stage ^ 1], keys, k.row, next, shape.keys, d);
      copy_tile<Keys, D>(tiles[stage ^ 1] + Keys * D, values, v.row, next, shape.keys, d);
      cp_async_commit();
    }
    if (mine >= shape.queries || seen_by(shape, mine + 15) <= start) continue;  // nobody here sees any of it

    const T *tile_k = tiles[stage], *tile_v = tile_k + Keys * D;
    float S[Keys / 8][4] = {}, dP[Keys / 8][4] = {};
    if constexpr (!kHeld<D, Masked>) load_operands<D>(Q, tile_q, 16 * warp);
    scores_of<D>(S, Q, tile_k);
    scores_of<D>(dP, dO, tile_v);
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) share_and_gradient(S[n][i], dP[n][i], row[i / 2], c);
    if constexpr (Masked) {
      keep_seen(S, dP, SeenKeys<D>(seen, shape, batch, query, start));
    } else if (seen_by(shape, mine) < start + Keys) {
      const int begins[2] = {}, ends[2] = {within(seen_by(shape, query) - start, Keys),
                                           within(seen_by(shape, query + 8) - start, Keys)};
      keep_columns(S, dP, begins, ends);
    }
    add_values<D>(dQ, dP, tile_k);
  }
  store_rows<D>(tile_q + 16 * warp * D, dQ, shape.scale, dq + (of_head + mine) * d, shape.queries - mine, d);
}

// Begins to copy the maxima and sums of a tile's rows, and their deltas; beyond the last row they become 0.
template <int Rows>
__device__ void copy_numbers(float2* to, float* to_delta, const float2* rows, const float* delta, int64_t first,
                             int64_t end) {
  if (threadIdx.x >= Rows) return;
  const int wanted = first + threadIdx.x < end;
  cp_async<8>(to + threadIdx.x, rows + first + threadIdx.x, 8 * wanted);
  cp_async<4>(to_delta + threadIdx.x, delta + first + threadIdx.x, 4 * wanted);
}

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(32 * kWarps, 2)
flash_dkv_v2(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
             const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dk, T* __restrict__ dv,
             AttentionShape shape) {
  constexpr int Keys = kQueries, Walked = kWalked<D>, Side = Walked * D;
  __shared__ __align__(128) T tile[Keys * D], tiles[4 * Side];  // of either stage: queries, then gradients
  __shared__ __align__(16) float2 tile_rows[2][Walked];
  __shared__ __align__(16) float tile_delta[2][Walked];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = int(shape.width);
  const TileOfHead of(shape.keys, Keys, shape.kv_heads);
  const int64_t first = of.first, kv_head = of.head, batch = of.batch, mine = first + 16 * warp;
  const int64_t group = shape.heads / shape.kv_heads, shift = shape.keys - shape.queries;
  const int64_t begin = shape.causal && first > shift ? (first - shift) / Walked * Walked : 0;
  const int64_t last_head = (kv_head + 1) * group;
  const float c = shape.scale * kLog2E;

  copy_tile<Keys, D>(tile, head_of<T>(k, batch, kv_head), k.row, first, shape.keys, d);
  copy_tile<Keys, D>(tiles, head_of<T>(v, batch, kv_head), v.row, first, shape.keys, d);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // keys and values are complete
  unsigned K[D / 16][4], V[D / 16][4];
  if constexpr (kKeysHeld<D, Masked>) load_operands<D>(K, tile, 16 * warp);
  load_operands<D>(V, tiles, 16 * warp);
  __syncthreads();  // the values are read by all
  const auto copy = [&](int64_t head, int64_t start, int stage) {
    T* to = tiles + stage * 2 * Side;
    const int64_t of_head = (batch * shape.heads + head) * shape.queries;
    copy_tile<Walked, D>(to, head_of<T>(q, batch, head), q.row, start, shape.queries, d);
    copy_tile<Walked, D>(to + Side, head_of<T>(d_out, batch, head), d_out.row, start, shape.queries, d);
    copy_numbers<Walked>(tile_rows[stage], tile_delta[stage], rows + of_head, delta + of_head, start, shape.queries);
    cp_async_commit();
  };
  float dK[D / 8][4] = {}, dV[D / 8][4] = {};
  int64_t head = kv_head * group, start = begin;
  int stage = 0;
  const auto step = [&] {
    start += Walked;
    if (start >= shape.queries) start = begin, ++head;
  };
  const auto pass_unseen = [&] {  // on to a tile of which somebody sees a key
    if constexpr (Masked)
      while (head < last_head && !any_sees<Walked>(seen, shape, batch, start, first)) step();
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
    if (mine >= shape.keys || (shape.causal && now + Walked - 1 + shift < mine)) continue;  // nobody sees any of these

    const T *tile_q = tiles + here * 2 * Side, *tile_do = tile_q + Side;
    float S[Walked / 8][4] = {}, dP[Walked / 8][4] = {};
    if constexpr (!kKeysHeld<D, Masked>) load_operands<D>(K, tile, 16 * warp);
    scores_of<D>(S, K, tile_q);
    scores_of<D>(dP, V, tile_do);
#pragma unroll
    for (int n = 0; n < Walked / 8; ++n) {
      const int pair = 8 * n + lane % 4 * 2;
      const float4 two = *reinterpret_cast<const float4*>(&tile_rows[here][pair]);
      const float2 deltas = *reinterpret_cast<const float2*>(&tile_delta[here][pair]);
      const RowNumbers row[2] = {RowNumbers(float2{two.x, two.y}, deltas.x, c),
                                 RowNumbers(float2{two.z, two.w}, deltas.y, c)};
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
    add_values<D>(dV, S, tile_do);
    add_values<D>(dK, dP, tile_q);
  }
  const int64_t place = ((batch * shape.kv_heads + kv_head) * shape.keys + mine) * d;
  store_rows<D>(tile + 16 * warp * D, dK, shape.scale, dk + place, shape.keys - mine, d);
  store_rows<D>(tile + 16 * warp * D, dV, 1, dv + place, shape.keys - mine, d);
}

// Both kernels of a version, in tiles of so many queries and keys.
template <int Rows, class Dq, class Dkv>
void launch_gradients(const AttentionShape& shape, Dq dq, Dkv dkv) {
  if (shape.batch * shape.heads * shape.queries > 0) dq(tile_grid(shape.queries, Rows, shape.heads, shape.batch));
  if (shape.batch * shape.kv_heads * shape.keys > 0) dkv(tile_grid(shape.keys, Rows, shape.kv_heads, shape.batch));
}

void flash_attention_backward(DType dtype, Strided q, Strided k, Strided v, Strided d_out, AttentionMask mask,
                              unsigned* seen, const void* out, const float* rows_, const float* d_lse, float* delta,
                              void* dq_, void* dk_, void* dv_, AttentionShape shape, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const auto* rows = reinterpret_cast<const float2*>(rows_);
  if (mask.data) pack_mask(mask, seen, shape, stream);
  const unsigned* bits = mask.data ? seen : nullptr;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    T *dq = static_cast<T*>(dq_), *dk = static_cast<T*>(dk_), *dv = static_cast<T*>(dv_);
    if (shape.batch * shape.heads * shape.queries > 0)
      LAUNCH((flash_delta_v1<T>), tile_grid(shape.queries, kDeltaRows, shape.heads, shape.batch), 32 * kDeltaRows, 0,
             stream)(d_out, static_cast<const T*>(out), d_lse, delta, shape);
    if constexpr (sizeof(T) == 2)
      if (fits_tensor_cores({q, k, v, d_out}, {dq_, dk_, dv_}, shape.width))
        return with_padded_width(shape.width, [&](auto width) {
          const auto launch = [&](auto masked) {
            constexpr int D = decltype(width)::value;
            constexpr bool M = decltype(masked)::value;
            launch_gradients<kQueries>(
                shape,
                [&](dim3 grid) {
                  LAUNCH((flash_dq_v2<T, D, M>), grid, 32 * kWarps, 0, stream)(q, k, v, d_out, bits, rows, delta, dq, shape);
                },
                [&](dim3 grid) {
                  LAUNCH((flash_dkv_v2<T, D, M>), grid, 32 * kWarps, 0, stream)(
                      q, k, v, d_out, bits, rows, delta, dk, dv, shape);
                });
          };
          if (bits) return launch(std::true_type{});
          launch(std::false_type{});
        });
    with_width(shape.width, [&](auto width) {
      constexpr int D = decltype(width)::value;
      launch_gradients<kTile>(
          shape,
          [&](dim3 grid) {
            LAUNCH((flash_dq_v1<T, D>), grid, kTileThreads, 0, stream)(q, k, v, d_out, bits, rows, delta, dq, shape);
          },
          [&](dim3 grid) {
            LAUNCH((flash_dkv_v1<T, D>), grid, kTileThreads, 0, stream)(q, k, v, d_out, bits, rows, delta, dk, dv, shape);
          });
    });
  });
  check_launch("flash_attention_backward");
}

}  // namespace minillama::kernels
