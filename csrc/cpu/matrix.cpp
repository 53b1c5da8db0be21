// y = W x for the forms that hold plain numbers: each row of W is read once, in the order in which it lies in memory, and
// multiplied with up to four rows of x at a time. 2 n FLOPs for the 4 or 2 bytes of a weight: with few rows of x the work
// is reading. The forms that hold codes: matrix_codes.cpp.

#include "matrix.h"

#include <algorithm>

#include "lanes.h"
#include "matrix_codes.h"
#include "vectors.h"

namespace minillama {

// Sums run in chains beside each other, so that a sum need not wait for the one before it. There are four whatever n is: a
// row of x gets the same bits alone as beside others.
constexpr int kChains = 4;
template <int lanes, int n>
constexpr int kChainsAtOnce = lanes < 16 && n == 4 ? 2 : 4;  // AVX-512 has registers for sixteen sums, the others for eight

// sums[m] = sum over k of w[k] x[m, k]
template <int lanes, int n, typename Stored>
static INLINE void dot_rows(const Stored* w, const float* x, int64_t columns, float* sums) {
  using Vector = typename Lanes<lanes>::type;
  constexpr int at_once = kChainsAtOnce<lanes, n>, step = kChains * lanes;
  Vector total[n] = {};
  int64_t k = columns / step * step;
  for (int chain = 0; chain < kChains; chain += at_once) {  // a second time the row lies in the first cache
    Vector sum[n][at_once] = {};
    for (int64_t at = chain * lanes; at < k; at += step) {
#pragma GCC unroll 4
      for (int c = 0; c < at_once; ++c) {
        const Vector of_w = load<lanes>(w + at + c * lanes);
#pragma GCC unroll 4
        for (int m = 0; m < n; ++m) sum[m][c] += load<lanes>(x + m * columns + at + c * lanes) * of_w;
      }
    }
    for (int m = 0; m < n; ++m)
      for (int c = 0; c < at_once; ++c) total[m] += sum[m][c];
  }
  for (; k + lanes <= columns; k += lanes)
    for (int m = 0; m < n; ++m) total[m] += load<lanes>(x + m * columns + k) * load<lanes>(w + k);
  for (int m = 0; m < n; ++m) sums[m] = sum_of<lanes>(total[m]);
  for (; k < columns; ++k)
    for (int m = 0; m < n; ++m) sums[m] += static_cast<float>(w[k]) * x[m * columns + k];
}

template <int lanes, int n, typename Stored>
static INLINE void multiply_some(const Matrix& w, const float* x, int64_t first, int64_t end, float* y) {
  const auto* values = static_cast<const Stored*>(w.values);
  for (int64_t r = first; r < end; ++r) {
    float sums[n];
    dot_rows<lanes, n>(values + r * w.columns, x, w.columns, sums);
    for (int m = 0; m < n; ++m) y[m * w.rows + r] = sums[m];
  }
}

// out[m, k] += sum over r of weights[m, r] W[r, k], in the columns of `count` vectors from k on
template <int lanes, int n, int count, typename Stored>
static INLINE void combine_columns(const Stored* w, int64_t columns, const float* weights, int64_t apart, int64_t first,
                                   int64_t end, int64_t k, float* out) {
  using Vector = typename Lanes<lanes>::type;
  Vector sum[n][count] = {};
  for (int64_t r = first; r < end; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < count; ++c) {
      const Vector of_w = load<lanes>(w + r * columns + k + c * lanes);
#pragma GCC unroll 4
      for (int m = 0; m < n; ++m) sum[m][c] += weights[m * apart + r] * of_w;
    }
  }
  for (int m = 0; m < n; ++m)
    for (int c = 0; c < count; ++c) store<lanes>(out + m * columns + k + c * lanes, sum[m][c]);
}

template <int n>
constexpr int kVectors = n == 4 ? 2 : 4;  // of each row of out that lie in registers at a time

template <int lanes, int n, typename Stored>
static INLINE void combine_some(const Matrix& w, const float* weights, int64_t apart, int64_t first, int64_t end,
                                float* out) {
  const auto* values = static_cast<const Stored*>(w.values);
  int64_t k = 0;
  for (; k + kVectors<n> * lanes <= w.columns; k += kVectors<n> * lanes)
    combine_columns<lanes, n, kVectors<n>>(values, w.columns, weights, apart, first, end, k, out);
  for (; k + lanes <= w.columns; k += lanes)
    combine_columns<lanes, n, 1>(values, w.columns, weights, apart, first, end, k, out);
  for (; k < w.columns; ++k)
    combine_columns<1, n, 1>(values, w.columns, weights, apart, first, end, k, out);
}

// ---- rows of x in groups of four, two and one: what it costs to read W's row again is little, it lies in the first cache

template <int lanes, typename Stored>
static INLINE void multiply_groups(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  const float* from = x.x;
  int64_t m = 0;
  for (; m + 4 <= x.n; m += 4)
    multiply_some<lanes, 4, Stored>(w, from + m * w.columns, first, end, y + m * w.rows);
  for (; m + 2 <= x.n; m += 2)
    multiply_some<lanes, 2, Stored>(w, from + m * w.columns, first, end, y + m * w.rows);
  if (m < x.n) multiply_some<lanes, 1, Stored>(w, from + m * w.columns, first, end, y + m * w.rows);
}

template <int lanes, typename Stored>
static INLINE void combine_groups(const Matrix& w, const float* weights, int64_t apart, int64_t n, int64_t first,
                                  int64_t end, float* out) {
  int64_t m = 0;
  for (; m + 4 <= n; m += 4)
    combine_some<lanes, 4, Stored>(w, weights + m * apart, apart, first, end, out + m * w.columns);
  for (; m + 2 <= n; m += 2)
    combine_some<lanes, 2, Stored>(w, weights + m * apart, apart, first, end, out + m * w.columns);
  if (m < n) combine_some<lanes, 1, Stored>(w, weights + m * apart, apart, first, end, out + m * w.columns);
}

// ---- the kinds of processors, each with all forms

#define KIND(kind, attributes, lanes)                                                                                  \
  attributes static void multiply_##kind(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) { \
    if (w.form == Form::f32) multiply_groups<lanes, float>(w, x, first, end, y);                                        \
    if (w.form == Form::bf16) multiply_groups<lanes, c10::BFloat16>(w, x, first, end, y);                               \
    if (w.form == Form::f16) multiply_groups<lanes, c10::Half>(w, x, first, end, y);                                    \
  }                                                                                                                    \
  attributes static void combine_##kind(const Matrix& w, const float* weights, int64_t apart, int64_t n,               \
                                        int64_t first, int64_t end, float* out) {                                      \
    if (w.form == Form::f32) combine_groups<lanes, float>(w, weights, apart, n, first, end, out);                       \
    if (w.form == Form::bf16) combine_groups<lanes, c10::BFloat16>(w, weights, apart, n, first, end, out);              \
    if (w.form == Form::f16) combine_groups<lanes, c10::Half>(w, weights, apart, n, first, end, out);                   \
  }

KIND(plain, , kPlainLanes)
#if MINILLAMA_X86
KIND(avx2, AVX2, 8)
KIND(avx512, AVX512, 16)
#endif

// ---- the door

void prepare(const Matrix& w, const float* x, int64_t n, Activations& to) {
  to.x = x;
  to.n = n;
  if (w.form == Form::nf4) prepare_nf4(w, to);
  if (w.form == Form::nf4_int8) nf4_int8_lay_out(x, n, w.columns, to.rounded);
  if (w.form == Form::int8) prepare_int8(w, to);
  if (w.form == Form::blocks_int8) gguf_lay_out(w.block, x, n, w.columns, to.in_parts);
}

void multiply_rows(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  if (w.form == Form::nf4) return multiply_nf4(w, x, first, end, y);
  if (w.form == Form::nf4_int8) return nf4_int8_rows(w.nf4, x.rounded, first, end, y + first, w.rows);
  if (w.form == Form::int8) return multiply_int8(w, x, first, end, y);
  if (w.form == Form::blocks) return multiply_blocks(w, x, first, end, y);
  if (w.form == Form::blocks_int8)
    return gguf_rounded_rows(w.block, static_cast<const uint8_t*>(w.values), x.in_parts, first, end, y + first, w.rows);
  OF_KIND_IN_USE(multiply)(w, x, first, end, y);
}

void combine_rows(const Matrix& w, const float* weights, int64_t apart, int64_t n, int64_t first, int64_t end, float* out) {
  OF_KIND_IN_USE(combine)(w, weights, apart, n, first, end, out);
}

void read_row(const Matrix& w, int64_t row, float* out) {
  const int64_t begin = row * w.columns;
  const auto copy = [&](const auto* values) { std::copy(values + begin, values + begin + w.columns, out); };
  if (w.form == Form::f32) copy(static_cast<const float*>(w.values));
  if (w.form == Form::bf16) copy(static_cast<const c10::BFloat16*>(w.values));
  if (w.form == Form::f16) copy(static_cast<const c10::Half*>(w.values));
  if (w.form == Form::blocks || w.form == Form::blocks_int8) read_blocks(w, row, out);
}

}  // namespace minillama
