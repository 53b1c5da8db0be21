// One text for all kinds of processors; the compiler knows vectors of any length.

#include "attention_loops.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "exponential.h"
#include "vectors.h"

namespace minillama {

// ---- products

enum class Into { set, add, rescaled };

// One block of a product: all its sums, rows * vectors of them, stay in registers, beside the vectors of one row of b and
// one number of a. a's number (r, k) lies at r * a_row + k, or, turned, at k * a_row + r.
template <int lanes, int rows, int vectors, bool turned, Into into>
static INLINE void block(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t depth, float* out,
                                   int64_t out_row, const float* factor) {
  Floats<lanes> sum[rows][vectors] = {}, of_b[vectors];
  for (int64_t k = 0; k < depth; ++k, b += b_row, a += turned ? a_row : 1) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) of_b[v] = load<lanes>(b + v * lanes);
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      const float of_a = a[turned ? r : r * a_row];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += of_a * of_b[v];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* to = out + r * out_row + v * lanes;
      if (into == Into::set) store<lanes>(to, sum[r][v]);
      if (into == Into::add) store<lanes>(to, load<lanes>(to) + sum[r][v]);
      if (into == Into::rescaled) store<lanes>(to, load<lanes>(to) * load<lanes>(factor + v * lanes) + sum[r][v]);
    }
  }
}

// All rows of some columns: six at a time, the rest in smaller blocks.
template <int lanes, int vectors, bool turned, Into into>
static INLINE void all_rows(const Product& p, int64_t column, const float* factor) {
  const float* a = p.a;
  const float* b = p.b + column;
  float* out = p.out + column;
  int64_t left = p.rows;
#define BLOCKS(rows)                                                                                       \
  for (; left >= rows; left -= rows, a += turned ? rows : rows * p.a_row, out += rows * p.out_row)          \
    block<lanes, rows, vectors, turned, into>(a, p.a_row, b, p.b_row, p.depth, out, p.out_row, factor);
  BLOCKS(6) BLOCKS(4) BLOCKS(2) BLOCKS(1)
#undef BLOCKS
}

// `most` vectors of columns at a time, as many as the registers hold, then what is left.
template <int lanes, int most, bool turned, Into into>
static INLINE void product(const Product& p, const float* factor) {
  int64_t column = p.first;
  const bool each = into == Into::rescaled;  // a factor for each column
#define COLUMNS(vectors)                                                                                   \
  if (vectors <= most)                                                                                     \
    for (; column + vectors * lanes <= p.last; column += vectors * lanes)                                  \
      all_rows<lanes, vectors <= most ? vectors : 1, turned, into>(p, column, each ? factor + column : factor);
  COLUMNS(4) COLUMNS(3) COLUMNS(2) COLUMNS(1)
#undef COLUMNS
}

// ---- what happens to scores

constexpr float kLog2E = 1.44269504088896340736f;

template <int lanes>
static INLINE void hide(float* scores, const int32_t* seen, int64_t keys, int64_t first, int64_t last, float value) {
  const Floats<lanes> hidden = Floats<lanes>{} + value;
  for (int64_t c = first; c < last; c += lanes) {
    const Integers<lanes> bits = load_integers<lanes>(seen + c);
    for (int64_t key = 0; key < keys; ++key) {
      float* at = scores + key * kQueries + c;
      store<lanes>(at, (bits & int32_t(uint32_t(1) << key)) != 0 ? load<lanes>(at) : hidden);
    }
  }
}

// A difference of scores is taken before it is multiplied, and so is exact near the highest: exp(0) is 1.
template <int lanes>
static INLINE void softmax(float* scores, int64_t keys, int64_t first, int64_t last, float scale, float* highest, float* sum,
                           float* factor) {
  const float to_power_of_2 = scale * kLog2E;
  for (int64_t c = first; c < last; c += lanes) {
    float* column = scores + c;
    const Floats<lanes> before = load<lanes>(highest + c);
    Floats<lanes> now = before, more = {};
    for (int64_t key = 0; key < keys; ++key) now = larger<lanes>(load<lanes>(column + key * kQueries), now);
    for (int64_t key = 0; key < keys; ++key) {
      const Floats<lanes> share = power_of_2<lanes>((load<lanes>(column + key * kQueries) - now) * to_power_of_2);
      store<lanes>(column + key * kQueries, share);
      more += share;
    }
    const Floats<lanes> rescale = power_of_2<lanes>((before - now) * to_power_of_2);
    store<lanes>(highest + c, now);
    store<lanes>(sum + c, load<lanes>(sum + c) * rescale + more);
    store<lanes>(factor + c, rescale);
  }
}

template <int lanes>
static INLINE void derive(float* scores, float* d_shares, int64_t keys, int64_t first, int64_t last, float scale,
                          const float* highest, const float* inverse_sum, const float* delta) {
  const float to_power_of_2 = scale * kLog2E;
  for (int64_t c = first; c < last; c += lanes) {
    const Floats<lanes> top = load<lanes>(highest + c), inverse = load<lanes>(inverse_sum + c);
    const Floats<lanes> my_delta = load<lanes>(delta + c);
    for (int64_t at = c; at < keys * kQueries; at += kQueries) {
      const Floats<lanes> share = power_of_2<lanes>((load<lanes>(scores + at) - top) * to_power_of_2) * inverse;
      store<lanes>(scores + at, share);
      store<lanes>(d_shares + at, share * (load<lanes>(d_shares + at) - my_delta));
    }
  }
}

// ---- moving rows

template <typename>
static INLINE void turn(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,
                                  int64_t columns) {
  for (int64_t r = 0; r < rows; r += 4)
    for (int64_t c = 0; c < columns; c += 4) {
      const float* x = from + r * from_row + c;
      float* y = to + c * to_row + r;
#if defined(__GNUC__)  // 4 x 4 numbers in registers
      const Floats<4> x0 = load<4>(x), x1 = load<4>(x + from_row), x2 = load<4>(x + 2 * from_row),
                      x3 = load<4>(x + 3 * from_row);
      const Floats<4> a = __builtin_shufflevector(x0, x1, 0, 4, 1, 5), b = __builtin_shufflevector(x0, x1, 2, 6, 3, 7);
      const Floats<4> e = __builtin_shufflevector(x2, x3, 0, 4, 1, 5), f = __builtin_shufflevector(x2, x3, 2, 6, 3, 7);
      store<4>(y, __builtin_shufflevector(a, e, 0, 1, 4, 5));
      store<4>(y + to_row, __builtin_shufflevector(a, e, 2, 3, 6, 7));
      store<4>(y + 2 * to_row, __builtin_shufflevector(b, f, 0, 1, 4, 5));
      store<4>(y + 3 * to_row, __builtin_shufflevector(b, f, 2, 3, 6, 7));
#else
      for (int64_t i = 0; i < 16; ++i) y[i / 4 * to_row + i % 4] = x[i % 4 * from_row + i / 4];
#endif
    }
}

template <int lanes, typename Scalar>
static INLINE void convert(const Scalar* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store<lanes>(to + i, load<lanes>(from + i));
  for (; i < count; ++i) to[i] = from[i];
}
template <typename Scalar>
static INLINE void convert_back(const float* from, Scalar* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Scalar>(from[i]);
}

template <int lanes>
static INLINE void read(kernels::DType dtype, const void* from, int64_t offset, float* to, int64_t count) {
  using kernels::DType;
  if (dtype == DType::f32) convert<lanes>(static_cast<const float*>(from) + offset, to, count);
  if (dtype == DType::bf16) convert<lanes>(static_cast<const c10::BFloat16*>(from) + offset, to, count);
  if (dtype == DType::f16) convert<lanes>(static_cast<const c10::Half*>(from) + offset, to, count);
}

static INLINE void write(kernels::DType dtype, const float* from, void* to, int64_t offset, int64_t count) {
  using kernels::DType;
  if (dtype == DType::f32) convert_back(from, static_cast<float*>(to) + offset, count);
  if (dtype == DType::bf16) convert_back(from, static_cast<c10::BFloat16*>(to) + offset, count);
  if (dtype == DType::f16) convert_back(from, static_cast<c10::Half*>(to) + offset, count);
}

// ---- the kinds: attributes for the compiler, numbers in a vector, vectors in a row of sums

#define KIND(kind, attributes, lanes, most)                                                                          \
  namespace kind {                                                                                                   \
  attributes static void set(const Product& p) { product<lanes, most, false, Into::set>(p, nullptr); }               \
  attributes static void add(const Product& p) { product<lanes, most, false, Into::add>(p, nullptr); }               \
  attributes static void add_turned(const Product& p, const float* factor) {                                         \
    product<lanes, most, true, Into::rescaled>(p, factor);                                                           \
  }                                                                                                                  \
  attributes static void hide(float* scores, const int32_t* seen, int64_t keys, int64_t first, int64_t last,         \
                              float hidden) {                                                                        \
    minillama::hide<lanes>(scores, seen, keys, first, last, hidden);                                                 \
  }                                                                                                                  \
  attributes static void softmax(float* scores, int64_t keys, int64_t first, int64_t last, float scale,              \
                                 float* highest, float* sum, float* factor) {                                        \
    minillama::softmax<lanes>(scores, keys, first, last, scale, highest, sum, factor);                               \
  }                                                                                                                  \
  attributes static void derive(float* scores, float* d_shares, int64_t keys, int64_t first, int64_t last,           \
                                float scale, const float* highest, const float* inverse_sum, const float* delta) {   \
    minillama::derive<lanes>(scores, d_shares, keys, first, last, scale, highest, inverse_sum, delta);               \
  }                                                                                                                  \
  attributes static void turn(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,          \
                              int64_t columns) {                                                                     \
    minillama::turn<void>(from, from_row, to, to_row, rows, columns);                                                \
  }                                                                                                                  \
  attributes static void read(kernels::DType dtype, const void* from, int64_t offset, float* to, int64_t count) {    \
    minillama::read<lanes>(dtype, from, offset, to, count);                                                                 \
  }                                                                                                                  \
  attributes static void write(kernels::DType dtype, const float* from, void* to, int64_t offset, int64_t count) {   \
    minillama::write(dtype, from, to, offset, count);                                                                \
  }                                                                                                                  \
  static const AttentionLoops loops{set, add, add_turned, hide, softmax, derive, turn, read, write};              \
  }                                                                                                               \
  static const AttentionLoops* const loops_##kind = &kind::loops;

KIND(plain, , kPlainLanes, 2)
#if MINILLAMA_X86
KIND(avx2, AVX2, 8, 2)
KIND(avx512, AVX512, 16, 4)
#endif

const AttentionLoops& attention_loops() { return *OF_KIND_IN_USE(loops); }

}  // namespace minillama
