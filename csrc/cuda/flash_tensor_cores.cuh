// Flash attention, version 2: both products on tensor cores, for bf16 and fp16 (version 1, and what it means:
// flash_attention.cuh; its tiles and fragments: flash_fragments.cuh), in heads of up to 128 columns (wider: flash_wide.cuh).
//
// A block takes 64 queries of one head, a warp 16 of them, and walks over tiles of 64 (d > 64: 32) keys and values.
//
//   fragments  A warp's 16 x d queries stay in registers, and so do its scores and its output (fp32). Two neighbouring
//              16 x 8 results of q k^T are, rounded, a 16 x 16 operand of P v: P never leaves the registers.
//   two stages While a tile is multiplied the next one arrives by cp.async, 16 bytes a copy; what lies beyond the last key
//              or column is filled with zeros. One barrier a tile.
//   swizzle    Row r of a tile keeps its 16 bytes number c at place c ^ (r mod 8), so that the 8 rows that ldmatrix reads at
//              once, and those that a copy writes, lie in 32 different banks: no conflicts.
//   masks      Only tiles that the diagonal or the end of the keys cuts compare indices. Behind a mask of the caller's own
//              they test its bits instead (flash_mask.cuh), and tiles that no query of the block sees are not copied.
//
// Cost: 64 tensor-core products of a warp a tile (d = 64 and 128), and in the loop's machine code for sm_80 490 other
// instructions, 32 of them ldmatrix and some 75 (d = 128: 45) for masks, which whole tiles pass over: 7 a product.
// Bytes: 2 e d T + 12 T for q, O, LSE, maxima and sums, moved once, and 2 e d keys of all tiles for 64 queries of a head.
// Exponentials are ex2.approx (2 units in the last place). P is rounded to 16 bits for its product, its sum is not.
#pragma once

#include "flash_fragments.cuh"
#include "flash_mask_tiles.cuh"

namespace minillama::kernels {

// How many keys a query sees, none or less where they are not positive: the first ones.
__device__ inline int64_t seen_by(const AttentionShape& shape, int64_t query) {
  return shape.causal ? min(shape.keys, query + 1 + shape.keys - shape.queries) : shape.keys;
}

// -infinity for what is not seen: of a tile's keys, row lane / 4 sees the first `seen` and row lane / 4 + 8 the first `below`.
template <int D>
__device__ void mask(float (&S)[kKeys<D> / 8][4], int64_t seen, int64_t below) {
  const int64_t most = kKeys<D>, none = 0;
  const int ends[2] = {int(max(none, min(seen, most))), int(max(none, min(below, most)))};
#pragma unroll
  for (int n = 0; n < kKeys<D> / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (8 * n + int(threadIdx.x) % 4 * 2 + i % 2 >= ends[i / 2]) S[n][i] = -INFINITY;
}

// -infinity for what is not seen.
template <int D>
__device__ void mask(float (&S)[kKeys<D> / 8][4], const SeenKeys<D>& seen) {
#pragma unroll
  for (int n = 0; n < kKeys<D> / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!seen(n, i)) S[n][i] = -INFINITY;
}

// What a thread knows of its two rows: the highest score yet, and that in units of the exponent; the sum of its own columns.
struct RowState {
  float highest = -INFINITY, base = -INFINITY, sum = 0;
};

// Scores become exp(scale (score - highest)), of which O and the sums are kept; half is 0 for row lane / 4, 1 for the other.
template <int D>
__device__ void exponentiate(float (&S)[kKeys<D> / 8][4], float (&O)[D / 8][4], RowState& state, int half, float c) {
  float highest = state.highest;
#pragma unroll
  for (int n = 0; n < kKeys<D> / 8; ++n) highest = fmaxf(highest, fmaxf(S[n][2 * half], S[n][2 * half + 1]));
  highest = team_max(highest);
  // One product and sum an element. The rounded base is what all exponents of a row count from: its rounding cancels.
  const float base = highest == -INFINITY ? 0 : highest * c;  // -inf - -inf would be NaN
  const float alpha = fast_exp2(state.base - base);           // what earlier sums are worth under the new maximum
  state.sum *= alpha;
#pragma unroll
  for (int n = 0; n < kKeys<D> / 8; ++n)
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; ++i) {
      S[n][i] = fast_exp2(__fmaf_rn(S[n][i], c, -base));
      state.sum += S[n][i];
    }
#pragma unroll
  for (int n = 0; n < D / 8; ++n) O[n][2 * half] *= alpha, O[n][2 * half + 1] *= alpha;
  state.highest = highest, state.base = highest * c;
}

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(32 * kWarps, 2)
flash_attention_v2(Strided q, Strided k, Strided v, const unsigned* __restrict__ seen, T* __restrict__ out,
                   float* __restrict__ lse, float2* __restrict__ rows, AttentionShape shape) {
  __shared__ __align__(128) T tile_q[kQueries * D], tile_k[2][kKeys<D> * D], tile_v[2][kKeys<D> * D];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = int(shape.width);
  const auto [first, head, batch] = TileOfHead(shape.queries, kQueries, shape.heads);
  const int64_t kv_head = unsigned(head) / unsigned(shape.heads / shape.kv_heads), mine = first + 16 * warp, query = mine + lane / 4;
  const T *keys = head_of<T>(k, batch, kv_head), *values = head_of<T>(v, batch, kv_head);
  const int64_t end = keys_end(shape, first, kQueries);
  const float c = shape.scale * kLog2E;  // exp(scale s) = 2^(c s)

  int64_t start = 0, next;
  if constexpr (Masked) start = next_seen<D>(seen, shape, batch, first, 0, end);
  copy_tile<kQueries, D>(tile_q, head_of<T>(q, batch, head), q.row, first, shape.queries, d);
  copy_tile<kKeys<D>, D>(tile_k[0], keys, k.row, start, shape.keys, d);
  copy_tile<kKeys<D>, D>(tile_v[0], values, v.row, start, shape.keys, d);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // the queries are complete
  unsigned Q[D / 16][4];
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
    ldmatrix_x4(Q[i], tile_q + swizzled<D>(16 * warp + lane % 16, 2 * i + lane / 16));
  float O[D / 8][4] = {};
  RowState state[2];
  unsigned saw[2] = {};
  int stage = 0;
  for (; start < end; start = next, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is complete, and the other stage is read by all
    next = start + kKeys<D>;
    if constexpr (Masked) next = next_seen<D>(seen, shape, batch, first, next, end);
    if (next < end) {
      copy_tile<kKeys<D>, D>(tile_k[stage ^ 1], keys, k.row, next, shape.keys, d);
      copy_tile<kKeys<D>, D>(tile_v[stage ^ 1], values, v.row, next, shape.keys, d);
      cp_async_commit();
    }
    if (mine >= shape.queries || seen_by(shape, mine + 15) <= start) continue;  // nobody here sees any of it

    float S[kKeys<D> / 8][4] = {};
    if constexpr (Masked) {
      const SeenKeys<D> here(seen, shape, batch, query, start);
      if (!__any_sync(kAllLanes, here.any(0) | here.any(1))) continue;
      saw[0] |= here.any(0), saw[1] |= here.any(1);
      scores_of<D>(S, Q, tile_k[stage]);
      mask<D>(S, here);
    } else {
      scores_of<D>(S, Q, tile_k[stage]);
      if (seen_by(shape, mine) < start + kKeys<D>)  // what the warp's first row sees all of, the others do
        mask<D>(S, seen_by(shape, query) - start, seen_by(shape, query + 8) - start);
    }
    exponentiate<D>(S, O, state[0], 0, c);
    exponentiate<D>(S, O, state[1], 1, c);
    add_values<D>(O, S, tile_v[stage]);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = query + 8 * half, place = (batch * shape.heads + head) * shape.queries + row;
    const bool sees_any = Masked ? saw[half] != 0 : sees(shape, row, 0);
    const float sum = team_sum(state[half].sum), highest = state[half].highest, share = sees_any ? 1 / sum : 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {  // the warp's rows of q are read: their place is the output's
      const float x = sees_any ? O[n][2 * half] * share : 0, y = sees_any ? O[n][2 * half + 1] * share : 0;
      const unsigned both = packed<T>(x, y);
      *reinterpret_cast<unsigned*>(tile_q + swizzled<D>(16 * warp + lane / 4 + 8 * half, n) + lane % 4 * 2) = both;
    }
    if (lane % 4 != 0 || row >= shape.queries) continue;
    lse[place] = sees_any ? highest * shape.scale + logf(sum) : INFINITY;
    rows[place] = float2{highest, sees_any ? sum * fast_exp2(-__fmaf_rn(highest, c, -state[half].base)) : 0};
  }
  __syncwarp();  // a warp's rows are complete
  T* to = out + ((batch * shape.heads + head) * shape.queries + mine) * d;
#pragma unroll 1
  for (int i = lane; i < 16 * D / 8; i += 32) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    if (mine + row < shape.queries && chunk * 8 < d)
      *reinterpret_cast<uint4*>(to + row * d + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile_q + swizzled<D>(16 * warp + row, chunk));
  }
}

}  // namespace minillama::kernels
