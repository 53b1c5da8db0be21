// RoPE, version 4: a warp per token, 16 bytes a lane, all heads of q and of k in one launch.
//
// A lane keeps its part of the table's row in registers while it goes from head to head, so the row is read once: issued
// bytes = compulsory bytes, 2 e T (H + K) d + 4 T d. Half-split, a lane holds 16 bytes of either half of a head; interleaved,
// 16 bytes that are whole pairs. Columns from `rotary` on are copied; the result may lie in place or in rows of a cache.
//
//   T = 2048, 32 + 8 heads, d = 128, bf16: 43.0 MB compulsory. Version 1 (rope.cuh) fetches the table's row again for
//   every head, 41.9 MB, and interleaved every sector of x and y twice. The operators launch version 1; this one is on
//   the profiler's bench (tests/simt/kernels/rope_road.cu).
#pragma once

#include "../launch.h"

namespace minillama::kernels {

// Heads that are turned together: x by its strides, and where the result goes, by its own (in elements; y may be x).
struct RopeRows {
  Strided x;
  void* y;
  int64_t y_batch, y_head, y_row, heads;
};

constexpr int kRopeTokens = 4;  // of a block: a warp each

template <class T>
struct alignas(16) RopeVector {  // loaded and stored at once
  T element[16 / sizeof(T)];
};

// The cosines and sines of a lane's pairs. Eight of them lie 32 bytes apart from lane to lane: two loads, each fetching
// every sector. So, where a warp can hold both rows, each lane loads 16 neighbouring bytes and the lanes trade.
template <int Pairs>
__device__ void load_angles(float (&c)[Pairs], float (&s)[Pairs], const float* cos, const float* sin, int half,
                            int chunk, float sign) {
  const int lane = threadIdx.x % 32, quads = half / 4;
  if (Pairs == 8 && half <= 64) {
    float4 mine = {};
    if (lane < 2 * quads) mine = reinterpret_cast<const float4*>(lane < quads ? cos : sin)[lane % quads];
    const float part[4] = {mine.x, mine.y, mine.z, mine.w};
#pragma unroll
    for (int j = 0; j < Pairs; ++j) {
      c[j] = __shfl_sync(0xffffffffu, part[j % 4], 2 * chunk + j / 4);
      s[j] = sign * __shfl_sync(0xffffffffu, part[j % 4], quads + 2 * chunk + j / 4);
    }
    return;
  }
  constexpr int Together = Pairs < 4 ? 2 : 4;
  struct alignas(4 * Together) Some {
    float angle[Together];
  };
#pragma unroll
  for (int j = 0; j < Pairs; j += Together) {
    const Some some_c = *reinterpret_cast<const Some*>(cos + chunk * Pairs + j);
    const Some some_s = *reinterpret_cast<const Some*>(sin + chunk * Pairs + j);
#pragma unroll
    for (int i = 0; i < Together; ++i) c[j + i] = some_c.angle[i], s[j + i] = sign * some_s.angle[i];
  }
}

template <class T>
__device__ void turn(T& first, T& second, float c, float s) {
  const float x0 = float(first), x1 = float(second);
  first = T(x0 * c - x1 * s);
  second = T(x1 * c + x0 * s);
}

template <class T, bool interleaved>
__global__ void __launch_bounds__(32 * kRopeTokens)
rope_v4(RopeRows q, RopeRows k, const float* __restrict__ cos, const float* __restrict__ sin,
        const int64_t* __restrict__ positions, int64_t tables, int64_t total, int64_t tokens, int width, int rotary,
        float sign) {
  using Vector = RopeVector<T>;
  constexpr int V = 16 / sizeof(T), Pairs = interleaved ? V / 2 : V;
  const int lane = threadIdx.x % 32, half = rotary / 2, chunks = half / Pairs, teams = 32 / chunks;
  const int team = lane / chunks, chunk = lane % chunks;
  const int64_t token = int64_t(blockIdx.x) * kRopeTokens + threadIdx.x / 32;
  if (token >= total) return;  // a whole warp leaves
  const int64_t batch = token / tokens, place = token % tokens, row = positions ? positions[token] : token % tables;
  float c[Pairs], s[Pairs];
  load_angles<Pairs>(c, s, cos + row * half, sin + row * half, half, chunk, sign);
  const int heads = int(q.heads + k.heads), tail = (width - rotary) / V;
  for (int head = team < teams ? team : heads; head < heads; head += teams) {
    const RopeRows& part = head < q.heads ? q : k;
    const int64_t h = head < q.heads ? head : head - q.heads;
    const T* from = static_cast<const T*>(part.x.data) + batch * part.x.batch + h * part.x.head + place * part.x.row;
    T* to = static_cast<T*>(part.y) + batch * part.y_batch + h * part.y_head + place * part.y_row;
    const int at = chunk * V;
    Vector a = *reinterpret_cast<const Vector*>(from + at);
    if (interleaved) {
#pragma unroll
      for (int j = 0; j < Pairs; ++j) turn(a.element[2 * j % V], a.element[(2 * j + 1) % V], c[j], s[j]);
    } else {
      Vector b = *reinterpret_cast<const Vector*>(from + half + at);
#pragma unroll
      for (int j = 0; j < V; ++j) turn(a.element[j], b.element[j], c[j % Pairs], s[j % Pairs]);
      *reinterpret_cast<Vector*>(to + half + at) = b;
    }
    *reinterpret_cast<Vector*>(to + at) = a;
  }
  for (int i = lane; i < heads * tail; i += 32) {
    const int head = i / tail, at = rotary + i % tail * V;
    const RopeRows& part = head < q.heads ? q : k;
    const int64_t h = head < q.heads ? head : head - q.heads;
    const T* from = static_cast<const T*>(part.x.data) + batch * part.x.batch + h * part.x.head + place * part.x.row;
    T* to = static_cast<T*>(part.y) + batch * part.y_batch + h * part.y_head + place * part.y_row;
    *reinterpret_cast<Vector*>(to + at) = *reinterpret_cast<const Vector*>(from + at);
  }
}

// Whether all rows begin at multiples of 16 bytes and a warp holds a head's pairs.
template <class T>
bool rope_fits_vectors(const RopeRows& part, int64_t width, int64_t rotary, bool interleaved) {
  constexpr int64_t V = 16 / sizeof(T);
  if (part.heads == 0) return true;
  bool fits = reinterpret_cast<uintptr_t>(part.x.data) % 16 == 0 && reinterpret_cast<uintptr_t>(part.y) % 16 == 0;
  for (const int64_t stride : {part.x.batch, part.x.head, part.x.row, part.y_batch, part.y_head, part.y_row})
    fits = fits && stride % V == 0;
  const int64_t pairs = interleaved ? V / 2 : V, half = rotary / 2;
  return fits && width % V == 0 && rotary > 0 && half % pairs == 0 && half / pairs <= 32;
}

template <class T>
void launch_rope_v4(const RopeRows& q, const RopeRows& k, const float* cos, const float* sin, const int64_t* positions,
                    int64_t tables, int64_t batch, int64_t tokens, int64_t width, int64_t rotary, bool interleaved,
                    bool inverse, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const int64_t total = batch * tokens;
  const dim3 blocks(ceil_div(total, kRopeTokens));
  const float sign = inverse ? -1.0f : 1.0f;
  if (interleaved)
    LAUNCH((rope_v4<T, true>), blocks, 32 * kRopeTokens, 0, stream)(q, k, cos, sin, positions, tables, total, tokens,
                                                                    int(width), int(rotary), sign);
  else
    LAUNCH((rope_v4<T, false>), blocks, 32 * kRopeTokens, 0, stream)(q, k, cos, sin, positions, tables, total, tokens,
                                                                     int(width), int(rotary), sign);
}

// q and k in one launch, the first `rotary` columns of each head, the others copied; token n uses row positions[n] of the
// table, or n % tables without positions; inverse turns back. Throws where rows are not multiples of 16 bytes.
inline void rope_qk(DType dtype, RopeRows q, RopeRows k, const float* cos, const float* sin, const int64_t* positions,
                    int64_t tables, int64_t batch, int64_t tokens, int64_t width, int64_t rotary, bool interleaved,
                    bool inverse, void* stream) {
  if (batch * tokens * (q.heads + k.heads) == 0) return;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned = (reinterpret_cast<uintptr_t>(cos) | reinterpret_cast<uintptr_t>(sin)) % 16 == 0;
    if (!aligned || !rope_fits_vectors<T>(q, width, rotary, interleaved) ||
        !rope_fits_vectors<T>(k, width, rotary, interleaved))
      throw std::runtime_error("rope_qk: rows of q, k, their results or the table do not begin at multiples of 16 bytes");
    launch_rope_v4<T>(q, k, cos, sin, positions, tables, batch, tokens, width, rotary, interleaved, inverse, stream);
  });
  check_launch("rope_qk");
}

}  // namespace minillama::kernels
