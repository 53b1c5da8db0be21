// What a block of a decoding kernel does with its part of the keys (flash_decoding.cuh, flash_decoding_append.cuh): each of
// its warps walks over every fourth step of them, and leaves of every row its unscaled output, its maximum and its sum.
//
// Costs 4 R d FLOPs and 2 e d bytes a key, for R rows: keys and values once, from memory into registers.
#pragma once

#include "flash_attention.cuh"

namespace minillama::kernels {

constexpr int kDecodingWarps = 4, kPartStep = 16;  // of a block; a part begins at a multiple of so many keys
// Keys that a warp takes at a time, and elements of a value that a lane takes: with more, a thread needs 256 registers.
template <int D, int R>
constexpr int kStepKeys = R * D >= 256 ? 8 : 16;
template <class T, int D, int R>
constexpr int kValueChunk = D > kNarrow ? D / 32 : R > 4 && sizeof(T) == 2 ? 4 : 16 / sizeof(T);
constexpr unsigned kWarpLanes = 0xffffffffu;

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Chunk {
  T x[N];
};

// N elements of a row, those that lie within its columns: 16 bytes at most are read at a time.
template <int N, class T>
__device__ Chunk<T, N> load_chunk(const T* from, int columns) {
  if constexpr (N * sizeof(T) <= 16) {
    return columns > 0 ? *reinterpret_cast<const Chunk<T, N>*>(from) : Chunk<T, N>{};
  } else {
    const Chunk<T, N / 2> halves[2] = {load_chunk<N / 2>(from, columns), load_chunk<N / 2>(from + N / 2, columns - N / 2)};
    Chunk<T, N> all;
#pragma unroll
    for (int e = 0; e < N; ++e) all.x[e] = halves[e / (N / 2)].x[e % (N / 2)];
    return all;
  }
}

// visit(R) with the rows of a block's tile: 4, or 8 where there are more. Of wide heads 4, whose sums are 20 KiB of shared
// memory, not 40; where a group has more, keys and values are read once for each 4 of it.
template <int D, class Visit>
void with_rows(int64_t rows, Visit visit) {
  if constexpr (D <= kNarrow)
    if (rows > 4) return visit(std::integral_constant<int, int(kDecodingRows)>{});
  visit(std::integral_constant<int, 4>{});
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

// Keys begin ... end - 1, of which sees(key) has a bit for each row that sees it.
template <class T, int D, int R, class Sees>
__device__ void attend_to_part(const float (&Q)[R][D], const T* keys, int64_t key_row, const T* values, int64_t value_row,
                               int d, int64_t begin, int64_t end, float c, Sees sees, float (*of_warp)[R][D],
                               float2 (*row_of_warp)[R]) {
  constexpr int N = 16 / sizeof(T), kPieces = D / (kTeam * N);       // of a key, for a lane
  constexpr int V = kValueChunk<T, D, R>, kAcross = D / V, kTogether = 32 / kAcross;  // lanes of a value, values at once
  constexpr int kStep = kStepKeys<D, R>, kEach = kStep * kTeam / 32;  // keys of a warp, and of a team of lanes
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = lane % kTeam;
  float O[R][V] = {}, highest[R], sum[R] = {};
  unsigned seen_yet = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) highest[r] = -INFINITY;
#pragma unroll 1
  for (int64_t start = begin + warp * kStep; start < end; start += kDecodingWarps * kStep) {
    unsigned seen[kEach], wanted[kEach];  // of this lane's keys: the rows that see them; of all: whether any does
    Chunk<T, N> K[kEach][kPieces];
    Chunk<T, V> values_of[kStep / kTogether];
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int64_t key = start + 8 * u + lane / kTeam;
      seen[u] = key < end ? sees(key) : 0;
      seen_yet |= seen[u];
      wanted[u] = __ballot_sync(kWarpLanes, seen[u] != 0);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int column = (member + kTeam * i) * N;
        K[u][i] = load_chunk<N>(keys + key * key_row + column, seen[u] != 0 ? d - column : 0);
      }
    }
#pragma unroll
    for (int j = 0; j < kStep / kTogether; ++j) {
      const int key = j * kTogether + lane / kAcross, column = lane % kAcross * V;
      const bool there = wanted[key / 8] >> (key % 8 * kTeam) & 1;
      values_of[j] = load_chunk<V>(values + (start + key) * value_row + column, there ? d - column : 0);
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
}

}  // namespace minillama::kernels
