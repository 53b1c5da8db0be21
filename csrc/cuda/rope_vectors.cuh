// RoPE, version 4: a warp per token, 16 bytes a lane, all heads of q and of k in one launch (versions 1 to 3: rope.cuh).
//
// The warp loads the table's row once and keeps it in registers while it goes from head to head, so issued bytes are
// compulsory bytes: 2 e T (H + K) d + 4 T d. Half-split, a lane holds 16 bytes of either half of a head; interleaved,
// 16 bytes of whole pairs. Two heads are under way at once, so that loads wait together. Columns behind the turned ones
// are copied. The result may lie in place or in rows of a cache.
//
//   T = 2048, 32 + 8 heads, d = 128, bf16: 41.9 MB + 1.05 MB, of 512 bytes a request; no shared memory, no barrier.
//
// rope_scalar does the same element by element, for rows that do not begin at multiples of 16 bytes.
#pragma once

#include <cmath>

#include "rope.cuh"

namespace minillama::kernels {

constexpr int kRopeTokens = kRopeThreads / 32;  // of a block: a warp each
constexpr int kRopeBlocks = 4;  // that an SM must hold: room for 128 registers, where nothing is spilled to save a few

// Where a warp is: its token's batch and place, and the row of the table, which may be a wrong one.
struct RopeToken {
  int64_t batch, place, row;
  bool real, in_table;

  __device__ RopeToken(const int64_t* positions, const RopeTable& table, const RopeShape& shape) {
    const int64_t token = int64_t(blockIdx.x) * kRopeTokens + threadIdx.x / 32;
    batch = token / shape.tokens, place = token % shape.tokens;
    real = batch < shape.batch;
    row = batch * table.batch + table.offset + place;
    if (positions && real) row = positions[batch * table.batch + place];
    in_table = row >= 0 && row < table.rows;  // a GPU cannot raise an error: such a token becomes NaN
  }
};

// One head of q or, behind those, of k: where it is read and where written.
template <class T>
struct RopeHead {
  const T* from;
  T* to;

  __device__ RopeHead(const RopeRows& q, const RopeRows& k, int head, const RopeToken& at) {
    const bool of_q = head < q.heads;
    const RopeRows& rows = of_q ? q : k;
    const int64_t h = of_q ? head : head - q.heads;
    from = static_cast<const T*>(rows.x.data) + at.batch * rows.x.batch + h * rows.x.head + at.place * rows.x.row;
    to = static_cast<T*>(rows.y) + at.batch * rows.y_batch + h * rows.y_head + at.place * rows.y_row;
  }
};

// The cosines and sines of a lane's pairs. Read by whom they are for, they would lie 32 or 64 bytes apart from lane to
// lane; so each lane loads the next 16 bytes of the row, which are two pairs, and the lanes trade.
template <int Pairs>
__device__ void load_angles(float (&c)[Pairs], float (&s)[Pairs], const float4* row, bool in_table, int half,
                            int chunk, float sign) {
  const int lane = threadIdx.x % 32, fours = half / 2;
#pragma unroll 1
  for (int start = 0; start < fours; start += 32) {  // once, up to 64 pairs
    float4 mine = {NAN, NAN, NAN, NAN};
    if (in_table && start + lane < fours) mine = row[start + lane];
#pragma unroll
    for (int j = 0; j < Pairs; j += 2) {
      const int holder = (chunk * Pairs + j) / 2 - start;
      const float c0 = __shfl_sync(0xffffffffu, mine.x, holder & 31), s0 = __shfl_sync(0xffffffffu, mine.y, holder & 31);
      const float c1 = __shfl_sync(0xffffffffu, mine.z, holder & 31), s1 = __shfl_sync(0xffffffffu, mine.w, holder & 31);
      if (holder < 0 || holder > 31) continue;
      c[j] = c0, c[j + 1] = c1, s[j] = sign * s0, s[j + 1] = sign * s1;
    }
  }
}

template <class T, bool interleaved>
__global__ void __launch_bounds__(kRopeThreads, kRopeBlocks)
rope_v4(RopeRows q, RopeRows k, const float* __restrict__ rotations, const int64_t* __restrict__ positions,
        RopeTable table, RopeShape shape) {
  constexpr int V = 16 / sizeof(T), Pairs = RopePairs<T, V, interleaved>::Pairs, Ahead = 2;
  const RopeToken token(positions, table, shape);
  if (!token.real) return;  // a whole warp leaves
  const int lane = threadIdx.x % 32, half = int(table.half), chunks = half / Pairs, teams = 32 / chunks;
  const int team = lane / chunks, chunk = lane % chunks, heads = int(q.heads + k.heads);
  float c[Pairs] = {}, s[Pairs] = {};
  const auto* row = reinterpret_cast<const float4*>(rotations + token.row * (2 * half));
  load_angles<Pairs>(c, s, row, token.in_table, half, chunk, shape.inverse ? -1.0f : 1.0f);
  for (int head = team < teams ? team : heads; head < heads; head += Ahead * teams) {
    RopePairs<T, V, interleaved> pairs[Ahead];
#pragma unroll
    for (int n = 0; n < Ahead; ++n)
      if (head + n * teams < heads) pairs[n].load(RopeHead<T>(q, k, head + n * teams, token).from, chunk * V, half);
#pragma unroll
    for (int n = 0; n < Ahead; ++n) {
      if (head + n * teams >= heads) break;
      pairs[n].turn_by(c, s);
      pairs[n].store(RopeHead<T>(q, k, head + n * teams, token).to, chunk * V, half);
    }
  }
  const int tail = (int(shape.width) - 2 * half) / V;
#pragma unroll 1
  for (int i = lane; i < heads * tail; i += 32) {
    const RopeHead<T> head(q, k, i / tail, token);
    const int at = 2 * half + i % tail * V;
    if (head.to != head.from)
      *reinterpret_cast<RopeVector<T, V>*>(head.to + at) = *reinterpret_cast<const RopeVector<T, V>*>(head.from + at);
  }
}

template <class T>
__global__ void __launch_bounds__(kRopeThreads, kRopeBlocks)
rope_scalar(RopeRows q, RopeRows k, const float* __restrict__ rotations, const int64_t* __restrict__ positions,
            RopeTable table, RopeShape shape) {
  const RopeToken token(positions, table, shape);
  if (!token.real) return;
  const int lane = threadIdx.x % 32, half = int(table.half), heads = int(q.heads + k.heads);
  for (int i = lane; i < half; i += 32) {
    const float* angle = rotations + (token.row * half + i) * 2;
    const float c = token.in_table ? angle[0] : NAN, s = token.in_table ? angle[1] : NAN;
    const int first = shape.interleaved ? 2 * i : i, second = shape.interleaved ? 2 * i + 1 : half + i;
    for (int h = 0; h < heads; ++h) {
      const RopeHead<T> head(q, k, h, token);
      T x0 = head.from[first], x1 = head.from[second];
      turn(x0, x1, c, shape.inverse ? -s : s);
      head.to[first] = x0;
      head.to[second] = x1;
    }
  }
  const int tail = int(shape.width) - 2 * half;
#pragma unroll 1
  for (int i = lane; i < heads * tail; i += 32) {
    const RopeHead<T> head(q, k, i / tail, token);
    const int at = 2 * half + i % tail;
    if (head.to != head.from) head.to[at] = head.from[at];
  }
}

// Whether every row begins at a multiple of 16 bytes, is made of whole vectors, and a warp holds a head's pairs.
template <class T>
bool rope_fits_vectors(const RopeRows& rows, const RopeTable& table, const RopeShape& shape) {
  constexpr int64_t V = 16 / sizeof(T);
  if (rows.heads == 0) return true;
  bool fits = on_16_bytes(rows.x.data) && on_16_bytes(rows.y) && on_16_bytes(table.rotations);
  for (const int64_t stride : {rows.x.batch, rows.x.head, rows.x.row, rows.y_batch, rows.y_head, rows.y_row})
    fits = fits && stride % V == 0;
  const int64_t pairs = shape.interleaved ? V / 2 : V;
  return fits && shape.width % V == 0 && table.half > 0 && table.half % pairs == 0 && table.half / pairs <= 32;
}

void rope(DType dtype, RopeRows q, RopeRows k, RopeTable table, RopeShape shape, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const int64_t tokens = shape.batch * shape.tokens, heads = q.heads + k.heads;
  if (tokens * heads * shape.width == 0) return;
  if (heads * shape.width > INT32_MAX || tokens > int64_t{INT32_MAX} * kRopeTokens)
    throw std::runtime_error("rope: a token of 2^31 elements, or more than 2^33 tokens, do not fit one launch");
  const dim3 blocks(ceil_div(tokens, kRopeTokens));
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto* rotations = table.rotations;
    const auto* positions = table.positions;
    if (!rope_fits_vectors<T>(q, table, shape) || !rope_fits_vectors<T>(k, table, shape))
      LAUNCH((rope_scalar<T>), blocks, kRopeThreads, 0, stream)(q, k, rotations, positions, table, shape);
    else if (shape.interleaved)
      LAUNCH((rope_v4<T, true>), blocks, kRopeThreads, 0, stream)(q, k, rotations, positions, table, shape);
    else
      LAUNCH((rope_v4<T, false>), blocks, kRopeThreads, 0, stream)(q, k, rotations, positions, table, shape);
  });
  check_launch("rope");
}

}  // namespace minillama::kernels
