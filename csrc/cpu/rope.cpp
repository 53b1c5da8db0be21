// RoPE on the CPU: (y0, y1) = (x0 cos - x1 sin, x1 cos + x0 sin) for every pair of every head.
//
// 3 FLOPs an element, x read once, y written once: bounded by memory, so the loops must be vectors and the memory must
// be asked early. Each token's row of the table is laid out once for all its heads; while a head is turned, the same head
// of the next token is fetched, and its place in the result too, which a store would otherwise read first and wait for.
// Arithmetic in fp32, rounded once to x's dtype. The backward pass is this kernel with -sin.

#include "rope.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

// The hot loops are compiled for three kinds of x86 processors, and the loader takes the best that is there.
#if defined(__GNUC__) && defined(__x86_64__) && defined(__GLIBC__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define FETCH(address, to_write) __builtin_prefetch(address, to_write)
#else
#define INLINE inline
#define FETCH(address, to_write)
#endif

namespace minillama {

using kernels::RopeRows;
using kernels::RopeShape;
using kernels::RopeTable;

// ---- two bf16 numbers in one word: no lane ever changes its place, so a plain loop becomes plain vector code

static INLINE float number(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
static INLINE uint32_t load_word(const c10::BFloat16* from) {
  uint32_t word;
  std::memcpy(&word, from, 4);
  return word;
}
// The bits of x, rounded to nearest even in the upper half. x may be NaN, but then its lower half is 0, as that of a bf16
// or of a processor's own NaN is, so that the sum cannot run over: Angles lets no other NaN in.
static INLINE uint32_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits + 0x7fff + (bits >> 16 & 1);
}
static INLINE void store_word(c10::BFloat16* to, float low, float high) {
  const uint32_t word = rounded(low) >> 16 | (rounded(high) & 0xffff0000u);
  std::memcpy(to, &word, 4);
}

EACH_PROCESSOR static void turn_bf16_interleaved(const c10::BFloat16* x, c10::BFloat16* y, const float* c,
                                                 const float* s, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const uint32_t pair = load_word(x + 2 * i);
    const float x0 = number(pair << 16), x1 = number(pair & 0xffff0000u);
    store_word(y + 2 * i, x0 * c[i] - x1 * s[i], x1 * c[i] + x0 * s[i]);
  }
}

// c and s hold the even pairs first, then the odd ones. An odd number of pairs leaves the last to the caller.
EACH_PROCESSOR static void turn_bf16_split(const c10::BFloat16* x, c10::BFloat16* y, const float* c, const float* s,
                                           int64_t half) {
  const float *odd_c = c + (half + 1) / 2, *odd_s = s + (half + 1) / 2;
#pragma omp simd
  for (int64_t i = 0; i < half / 2; ++i) {
    const uint32_t first = load_word(x + 2 * i), second = load_word(x + half + 2 * i);
    const float a0 = number(first << 16), a1 = number(second << 16);
    const float b0 = number(first & 0xffff0000u), b1 = number(second & 0xffff0000u);
    store_word(y + 2 * i, a0 * c[i] - a1 * s[i], b0 * odd_c[i] - b1 * odd_s[i]);
    store_word(y + half + 2 * i, a1 * c[i] + a0 * s[i], b1 * odd_c[i] + b0 * odd_s[i]);
  }
}

// ---- any dtype

template <bool interleaved, typename Scalar>
static INLINE void turn_pairs(const Scalar* x, Scalar* y, const float* c, const float* s, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const float x0 = x[first], x1 = x[second];
    y[first] = static_cast<Scalar>(x0 * c[i] - x1 * s[i]);
    y[second] = static_cast<Scalar>(x1 * c[i] + x0 * s[i]);
  }
}
EACH_PROCESSOR static void turn_fp32_interleaved(const float* x, float* y, const float* c, const float* s, int64_t half) {
  turn_pairs<true>(x, y, c, s, half);
}
EACH_PROCESSOR static void turn_fp32_split(const float* x, float* y, const float* c, const float* s, int64_t half) {
  turn_pairs<false>(x, y, c, s, half);
}

static void turn_head(const float* x, float* y, const float* c, const float* s, int64_t half, bool interleaved) {
  (interleaved ? turn_fp32_interleaved : turn_fp32_split)(x, y, c, s, half);
}
static void turn_head(const c10::Half* x, c10::Half* y, const float* c, const float* s, int64_t half,
                      bool interleaved) {
  (interleaved ? turn_pairs<true, c10::Half> : turn_pairs<false, c10::Half>)(x, y, c, s, half);
}
static void turn_head(const c10::BFloat16* x, c10::BFloat16* y, const float* c, const float* s, int64_t half,
                      bool interleaved) {
  if (interleaved) return turn_bf16_interleaved(x, y, c, s, half);
  turn_bf16_split(x, y, c, s, half);
  if (half % 2) {
    const float x0 = x[half - 1], x1 = x[2 * half - 1], last_c = c[half / 2], last_s = s[half / 2];
    y[half - 1] = x0 * last_c - x1 * last_s;
    y[2 * half - 1] = x1 * last_c + x0 * last_s;
  }
}

// ---- a token

// A row of the table, as the loops want it.
struct Angles {
  std::vector<float> c, s;
  explicit Angles(int64_t half) : c(half), s(half) {}

  void load(const float* row, bool even_first, bool inverse) {
    const int64_t half = int64_t(c.size());
    for (int64_t i = 0; i < half; ++i) {
      const int64_t to = !even_first ? i : i % 2 ? (half + 1) / 2 + i / 2 : i / 2;
      const float cos = row[2 * i], sin = inverse ? -row[2 * i + 1] : row[2 * i + 1];
      c[to] = std::isnan(cos) ? NAN : cos;
      s[to] = std::isnan(sin) ? NAN : sin;
    }
  }
};

template <typename Scalar>
static void turn_token(const RopeRows& rows, const Angles& angles, const RopeShape& shape, int64_t batch,
                       int64_t place) {
  const auto* x = static_cast<const Scalar*>(rows.x.data) + batch * rows.x.batch + place * rows.x.row;
  auto* y = static_cast<Scalar*>(rows.y) + batch * rows.y_batch + place * rows.y_row;
  const int64_t half = int64_t(angles.c.size()), tail = shape.width - 2 * half;
  for (int64_t head = 0; head < rows.heads; ++head, x += rows.x.head, y += rows.y_head) {
    if (place + 1 < shape.tokens) {
      for (int64_t at = 0; at < shape.width; at += 64 / sizeof(Scalar)) {  // a line of the cache
        FETCH(x + rows.x.row + at, 0);
        FETCH(y + rows.y_row + at, 1);
      }
    }
    turn_head(x, y, angles.c.data(), angles.s.data(), half, shape.interleaved);
    if (tail && x != y) std::memcpy(y + 2 * half, x + 2 * half, tail * sizeof(Scalar));
  }
}

template <typename Scalar>
void rope_cpu(const RopeRows& q, const RopeRows& k, const RopeTable& table, const RopeShape& shape, int64_t begin,
              int64_t end) {
  Angles angles(table.half);
  for (int64_t token = begin; token < end; ++token) {
    const int64_t batch = token / shape.tokens, place = token % shape.tokens, at = batch * table.batch + place;
    const int64_t row = table.positions ? table.positions[at] : at + table.offset;
    const bool even_first = std::is_same_v<Scalar, c10::BFloat16> && !shape.interleaved;
    angles.load(table.rotations + row * 2 * table.half, even_first, shape.inverse);
    turn_token<Scalar>(q, angles, shape, batch, place);
    turn_token<Scalar>(k, angles, shape, batch, place);
  }
}

#define INSTANTIATE(Scalar)                                                                                      \
  template void rope_cpu<Scalar>(const RopeRows&, const RopeRows&, const RopeTable&, const RopeShape&, int64_t, \
                                 int64_t);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace minillama
