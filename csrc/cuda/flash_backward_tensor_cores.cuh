// The gradients of flash attention, version 2: five products, all on tensor cores, in one kernel, for bf16 and fp16 (version
// 1, and the formulas: flash_attention_backward.cuh; tiles and fragments: flash_gradient_tiles.cuh, flash_fragments.cuh,
// flash_tensor_cores.cuh).
//
//   flash_gradients_v2  A block takes 128 keys of one head, a warp 16 of them, and walks over tiles of 32 (d > 96: 16)
//                       queries of every head that shares them, in their order. S^T = k q^T and dP^T = v dO^T are
//                       transposed, so that P^T and dS^T are, rounded, operands of dV += P^T dO and dK += dS^T q. dS^T
//                       meets in shared memory, and its product with k is what these keys add to dQ.
//
// dQ is a sum over blocks. Each adds its part when its turn has come, the last keys first: the same inputs give the same
// bits, which atomic sums would not. A turn is a word in memory for each tile of queries. Nobody waits for ever, since a block
// takes its keys by a ticket and waits only for those of lower ones, which run or have run. Behind a diagonal nobody waits at
// all: the block before is tiles ahead. Sums lie as registers do, 16 bytes a thread; the block of the first keys, the last
// to come, rounds.
//
// P is formed as the forward pass formed it, from exponents that count from the rounded maximum, so that the roundings of
// both cancel. P and dS are rounded to 16 bits for their products, all sums are fp32; 1 / sqrt(d) comes last.
//
// Behind a mask of the caller's own its bits are tested, and no tile is copied of which nobody in the block has any part.
//
// Bytes: k and v once; for each 128 keys q, dO and 12 bytes a row of all heads of the group, and dQ in fp32 read and
// written but for the first and the last block of a row. Two kernels, one for dQ and one for dK and dV in tiles of 64, form
// S and dP twice: seven products, and a third more bytes.
#pragma once

#include "flash_attention_backward.cuh"
#include "flash_gradient_tiles.cuh"
#include "flash_tensor_cores.cuh"

namespace minillama::kernels {

// The shared memory of a block.
template <class T, int D>
struct GradientTiles {
  static constexpr int Side = kWalked<D> * D;
  T keys[kBlockKeys * D], values[kBlockKeys * D], scores[kBlockKeys * kWalked<D>];
  T tiles[2][2 * Side];  // of either stage: queries, then gradients
  float2 rows[2][kWalked<D>];
  float delta[2][kWalked<D>];
  __align__(8) unsigned char live[kKeyWarps];  // whether somebody sees one of a warp's keys
  unsigned ticket, has_sum;
  unsigned* left;  // the turn that the tile before has left to be passed; the first thread's
};

// A block's keys by its ticket: heads one after another, and of each the last keys first.
struct KeysOfTicket {
  int tile, head, batch;

  __device__ KeysOfTicket(unsigned ticket, unsigned tiles, const AttentionShape& shape) {
    const unsigned rest = ticket / tiles, kv_heads = unsigned(shape.kv_heads);
    tile = int(tiles - 1 - ticket % tiles), head = int(rest % kv_heads), batch = int(rest / kv_heads);
  }
};

// The turns of the blocks that add to a tile of dQ: twice how many have been there, and 1 if any of them has left a sum.
__device__ inline unsigned wait_for_turn(unsigned* turn, unsigned order) {
  if (order == 0) return 0;
  unsigned state;
  while ((state = atomicAdd(turn, 0)) / 2 != order) __nanosleep(64);
  __threadfence();  // what they wrote is seen
  return state % 2;
}

__device__ inline void pass_turn(unsigned* turn, bool first_sum) {
  __threadfence();  // what this block wrote is seen before
  atomicAdd(turn, first_sum ? 3 : 2);
}

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(32 * kKeyWarps, 1)
flash_gradients_v2(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
                   const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dq,
                   T* __restrict__ dk, T* __restrict__ dv, float4* sums, unsigned* turns, AttentionShape shape,
                   unsigned tiles) {
  constexpr int Walked = kWalked<D>, Side = GradientTiles<T, D>::Side;
  constexpr int N = Walked * D / 128 / kKeyWarps;  // results of 16 x 8 that a warp has of a tile of dQ
  DYNAMIC_SHARED(unsigned char, memory);
  auto& at = *reinterpret_cast<GradientTiles<T, D>*>(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = int(shape.width);
  if (threadIdx.x == 0) at.ticket = atomicAdd(turns, 1), at.left = nullptr;
  __syncthreads();  // between blocks: all know the ticket
  const KeysOfTicket of(at.ticket, tiles, shape);
  const int batch = of.batch, kv_head = of.head, queries = int(shape.queries), keys = int(shape.keys);
  const int first = of.tile * kBlockKeys, mine = first + 16 * warp, shift = keys - queries;
  const int walked = (queries + Walked - 1) / Walked, group = unsigned(shape.heads) / unsigned(shape.kv_heads);
  const int begin = shape.causal && of.tile > 0 && first > shift ? (first - shift) / Walked : 0;  // of the tiles walked over
  const int last_head = begin < walked ? (kv_head + 1) * group : 0;
  const float c = shape.scale * kLog2E;

  copy_tile<kBlockKeys, D, kKeyWarps>(at.keys, head_of<T>(k, batch, kv_head), k.row, first, shape.keys, d);
  copy_tile<kBlockKeys, D, kKeyWarps>(at.values, head_of<T>(v, batch, kv_head), v.row, first, shape.keys, d);
  cp_async_commit();
  int head = kv_head * group, number = begin;
  const auto fetch = [&](int stage) {  // begins to copy the tile, unless nobody in it sees a key
    const int start = number * Walked;
    const int64_t of_head = (batch * shape.heads + head) * shape.queries;
    if constexpr (Masked)
      if (!any_sees<Walked, kBlockKeys>(seen, shape, batch, start, first)) return false;
    copy_tile<Walked, D, kKeyWarps>(at.tiles[stage], head_of<T>(q, batch, head), q.row, start, shape.queries, d);
    copy_tile<Walked, D, kKeyWarps>(at.tiles[stage] + Side, head_of<T>(d_out, batch, head), d_out.row, start,
                                    shape.queries, d);
    copy_numbers<Walked>(at.rows[stage], at.delta[stage], rows + of_head, delta + of_head, start, shape.queries);
    cp_async_commit();
    return true;
  };
  const auto order = [&](int reach) {  // how many blocks come to a tile before this one
    return min(unsigned(max(reach, 0)) / kBlockKeys, tiles - 1) - of.tile;
  };
  bool next_seen = head < last_head && fetch(0);
  float dK[D / 8][4] = {}, dV[D / 8][4] = {};
  for (int stage = 0; head < last_head; stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is complete, the other stage is read by all, and the sums of the tile before are written
    if (threadIdx.x == 0 && at.left) pass_turn(at.left, !at.has_sum);
    const bool tile_seen = next_seen;
    const int now = number * Walked;
    const unsigned of_head = unsigned(batch * int(shape.heads) + head), tile = of_head * walked + number;
    if (++number == walked) number = begin, ++head;
    next_seen = head < last_head && fetch(stage ^ 1);
    const int reach = shape.causal ? now + Walked - 1 + shift : keys - 1;  // the last key that may be seen
    if (threadIdx.x == 0) at.left = of.tile > 0 && tile_seen ? turns + 1 + tile : nullptr;
    if (!tile_seen && of.tile > 0) {
      if (threadIdx.x == 0) wait_for_turn(turns + 1 + tile, order(reach)), pass_turn(turns + 1 + tile, false);
      continue;
    }

    T *tile_q = at.tiles[stage], *tile_do = tile_q + Side;
    float S[Walked / 8][4] = {}, dP[Walked / 8][4] = {};
    bool live = tile_seen && mine < keys && mine <= reach;
    if constexpr (Masked) live = live && SeeingQueries<Walked>(seen, shape, batch, now, mine).any();
    if (live) {
      scores_of_keys<D>(S, at.keys, 16 * warp, tile_q);
      scores_of_keys<D>(dP, at.values, 16 * warp, tile_do);
#pragma unroll
      for (int n = 0; n < Walked / 8; ++n) {
        const int pair = 8 * n + lane % 4 * 2;
        const float4 two = *reinterpret_cast<const float4*>(&at.rows[stage][pair]);
        const float2 deltas = *reinterpret_cast<const float2*>(&at.delta[stage][pair]);
        const RowNumbers row[2] = {RowNumbers(float2{two.x, two.y}, deltas.x, c),
                                   RowNumbers(float2{two.z, two.w}, deltas.y, c)};
#pragma unroll
        for (int i = 0; i < 4; ++i) share_and_gradient(S[n][i], dP[n][i], row[i % 2], c);
      }
      if constexpr (Masked) {
        keep_seen(S, dP, SeeingQueries<Walked>(seen, shape, batch, now, mine));
      } else if (now + Walked > queries || mine + 16 > keys || (shape.causal && now + shift < mine + 15)) {
        const int key = mine + lane / 4, from = shape.causal ? key - shift - now : -8;  // the first query that sees it
        keep_columns(S, dP, {from, from + 8}, {key < keys ? queries - now : 0, key + 8 < keys ? queries - now : 0});
      }
      add_values<D>(dV, S, tile_do);
      add_values<D>(dK, dP, tile_q);
    }
    store_scores<Walked>(at.scores, dP, 16 * warp);
    if (lane == 0) at.live[warp] = live;
    if (threadIdx.x == 0) at.has_sum = wait_for_turn(turns + 1 + tile, order(reach));
    __syncthreads();  // the gradients of scores are complete, and the turn has come

    const int row = warp % (Walked / 16) * 16, column = warp / (Walked / 16) * 8 * N;
    float dQ[N][4] = {};
    add_keys<D>(dQ, at.scores, at.keys, row, column, *reinterpret_cast<const uint2*>(at.live));
    float4* sum = sums + int64_t(tile) * (N * 32 * kKeyWarps) + threadIdx.x;
#pragma unroll
    for (int n = 0; n < N; ++n, sum += 32 * kKeyWarps) {
      if (at.has_sum) {
        const float4 before = __ldcg(sum);
        dQ[n][0] += before.x, dQ[n][1] += before.y, dQ[n][2] += before.z, dQ[n][3] += before.w;
      }
      if (of.tile > 0) __stcg(sum, float4{dQ[n][0], dQ[n][1], dQ[n][2], dQ[n][3]});
    }
    if (of.tile == 0)
      store_tile<D>(tile_q, dQ, row, column, shape.scale, dq + (of_head * shape.queries + now) * d, queries - now, d);
  }
  __syncthreads();  // the keys are read by all, and the last sums are written
  if (threadIdx.x == 0 && at.left) pass_turn(at.left, !at.has_sum);
  const int64_t place = ((batch * shape.kv_heads + kv_head) * shape.keys + mine) * d;
  store_rows<D>(at.keys + 16 * warp * D, dK, shape.scale, dk + place, keys - mine, d);
  store_rows<D>(at.keys + 16 * warp * D, dV, 1, dv + place, keys - mine, d);
}

// All three kernels of version 1.
template <class T>
void launch_v1(Strided q, Strided k, Strided v, Strided d_out, const unsigned* seen, const float2* rows,
               const float* delta, T* dq, T* dk, T* dv, const AttentionShape& shape, cudaStream_t stream) {
  with_width<sizeof(T) == 2 ? kNarrow : kMaxHeadWidth>(shape.width, [&](auto width) {
    constexpr int D = decltype(width)::value;
    if (shape.batch * shape.heads * shape.queries > 0)
      LAUNCH((flash_dq_v1<T, D>), tile_grid(shape.queries, kTile<D>, shape.heads, shape.batch), kTileThreads<D>, 0,
             stream)(q, k, v, d_out, seen, rows, delta, dq, shape);
    if (shape.batch * shape.kv_heads * shape.keys > 0)
      LAUNCH((flash_dkv_v1<T, D>), tile_grid(shape.keys, kTile<D>, shape.kv_heads, shape.batch), kTileThreads<D>, 0,
             stream)(q, k, v, d_out, seen, rows, delta, dk, dv, shape);
  });
}

template <class T, int D, bool Masked, class... Arguments>
void launch_gradients(const AttentionShape& shape, cudaStream_t stream, Arguments... arguments) {
  const int bytes = int(sizeof(GradientTiles<T, D>));
  cudaFuncSetAttribute(flash_gradients_v2<T, D, Masked>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  const unsigned tiles = unsigned(key_tiles(shape));
  LAUNCH((flash_gradients_v2<T, D, Masked>), dim3(unsigned(tiles * shape.kv_heads * shape.batch)), 32 * kKeyWarps, bytes,
         stream)(arguments..., shape, tiles);
}

template <class T>  // heads wider than kNarrow: flash_wide_backward.cuh
void flash_wide_backward(Strided q, Strided k, Strided v, Strided d_out, const unsigned* bits, const float2* rows,
                         const float* delta, T* dq, T* dk, T* dv, const AttentionShape& shape, cudaStream_t stream);

void flash_attention_backward(DType dtype, Strided q, Strided k, Strided v, Strided d_out, AttentionMask mask,
                              unsigned* seen, const void* out, const float* rows_, const float* d_lse, float* delta,
                              float* sums_, unsigned* turns, void* dq_, void* dk_, void* dv_, AttentionShape shape,
                              void* stream_) {
  if (shape.batch * shape.kv_heads == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const auto* rows = reinterpret_cast<const float2*>(rows_);
  auto* sums = reinterpret_cast<float4*>(sums_);
  if (mask.data) pack_mask(mask, seen, shape, stream);
  const unsigned* bits = mask.data ? seen : nullptr;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    T *dq = static_cast<T*>(dq_), *dk = static_cast<T*>(dk_), *dv = static_cast<T*>(dv_);
    if (shape.heads * shape.queries > 0)
      LAUNCH((flash_delta_v1<T>), tile_grid(shape.queries, kDeltaRows, shape.heads, shape.batch), 32 * kDeltaRows, 0,
             stream)(d_out, static_cast<const T*>(out), d_lse, delta, shape);
    if constexpr (sizeof(T) == 2) {
      if (shape.width > kNarrow)
        return flash_wide_backward(q, k, v, d_out, bits, rows, delta, dq, dk, dv, shape, stream);
      // without queries there is no tile whose wait ends the copies of k and v before zeros take their place
      if (shape.queries > 0 && shape.queries + shape.keys < kMostRows &&
          fits_tensor_cores({q, k, v, d_out}, {dq_, dk_, dv_}, shape.width))
        return with_padded_width(shape.width, [&](auto width) {
          constexpr int D = decltype(width)::value;
          if (bits) launch_gradients<T, D, true>(shape, stream, q, k, v, d_out, bits, rows, delta, dq, dk, dv, sums, turns);
          else launch_gradients<T, D, false>(shape, stream, q, k, v, d_out, bits, rows, delta, dq, dk, dv, sums, turns);
        });
    }
    launch_v1<T>(q, k, v, d_out, bits, rows, delta, dq, dk, dv, shape, stream);
  });
  check_launch("flash_attention_backward");
}

}  // namespace minillama::kernels
