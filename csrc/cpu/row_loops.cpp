// One text for all kinds of processors. A loop does whole vectors of a row first and then, by the same text with vectors
// of one number, what is left.

#include "row_loops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "exponential.h"
#include "vectors.h"

namespace minillama {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int64_t kChain = 32;  // vectors that are summed in fp32, before their sum goes to a double

// ---- sums of a row; `product` has one number of up to three rows

enum class Term { square, product_of_three };

template <int lanes, Term term>
static INLINE double sum_terms(const float* x, const float* y, const float* z, int64_t n) {
  double sum = 0;
  for (int64_t begin = 0; begin + lanes <= n; begin += kChain * lanes) {
    Floats<lanes> part = {};
    for (int64_t i = begin; i + lanes <= std::min(n, begin + kChain * lanes); i += lanes) {
      const Floats<lanes> of_x = load<lanes>(x + i);
      part += term == Term::square ? of_x * of_x : of_x * load<lanes>(y + i) * load<lanes>(z + i);
    }
    sum += sum_of<lanes>(part);
  }
  return sum;
}

template <int lanes>
static INLINE double sum_of_squares(const float* x, int64_t n) {
  const int64_t whole = n / lanes * lanes;
  return sum_terms<lanes, Term::square>(x, nullptr, nullptr, n) +
         sum_terms<1, Term::square>(x + whole, nullptr, nullptr, n - whole);
}

// ---- RMSNorm

template <int lanes>
static INLINE void normalize_vectors(const float* x, float scale, const float* gain, float* y, int64_t n) {
  for (int64_t i = 0; i + lanes <= n; i += lanes)
    store<lanes>(y + i, load<lanes>(x + i) * scale * load<lanes>(gain + i));
}

template <int lanes>
static INLINE void normalize_backward_vectors(const float* dy, const float* x, const float* gain, float scale, float along,
                                              float* dx, float* d_gain, int64_t n) {
  for (int64_t i = 0; i + lanes <= n; i += lanes) {
    const Floats<lanes> of_dy = load<lanes>(dy + i), of_x = load<lanes>(x + i);
    store<lanes>(d_gain + i, load<lanes>(d_gain + i) + of_dy * (of_x * scale));
    store<lanes>(dx + i, (of_dy * load<lanes>(gain + i) - of_x * along) * scale);
  }
}

template <int lanes>
static INLINE void normalize_backward(const float* dy, const float* x, const float* gain, float scale, float* dx,
                                      float* d_gain, int64_t n) {
  const int64_t whole = n / lanes * lanes, left = n - whole;
  const double product = sum_terms<lanes, Term::product_of_three>(dy, gain, x, n) +
                         sum_terms<1, Term::product_of_three>(dy + whole, gain + whole, x + whole, left);
  const float along = float(double(scale) * scale * product / double(n));
  normalize_backward_vectors<lanes>(dy, x, gain, scale, along, dx, d_gain, n);
  normalize_backward_vectors<1>(dy + whole, x + whole, gain + whole, scale, along, dx + whole, d_gain + whole, left);
}

// ---- SwiGLU's gate

// 1 / (1 + exp(-a)): of the two exponentials that give it, the one that cannot overflow.
template <int lanes>
static INLINE Floats<lanes> sigmoid(const Floats<lanes>& a) {
  const Floats<lanes> size = a < 0.0f ? -a : a, power = power_of_2<lanes>(size * -kLog2E), one = Floats<lanes>{} + 1.0f;
  return (a < 0.0f ? power : one) / (power + 1.0f);
}

template <int lanes>
static INLINE void gate_vectors(const float* a, const float* b, float* y, int64_t n) {
  for (int64_t i = 0; i + lanes <= n; i += lanes) {
    const Floats<lanes> of_a = load<lanes>(a + i);
    store<lanes>(y + i, of_a * sigmoid<lanes>(of_a) * load<lanes>(b + i));
  }
}

// silu'(a) = s + a s (1 - s), s = sigmoid(a)
template <int lanes>
static INLINE void gate_backward_vectors(const float* dy, const float* a, const float* b, float* da, float* db, int64_t n) {
  for (int64_t i = 0; i + lanes <= n; i += lanes) {
    const Floats<lanes> of_dy = load<lanes>(dy + i), of_a = load<lanes>(a + i), s = sigmoid<lanes>(of_a);
    const Floats<lanes> silu = of_a * s;
    store<lanes>(da + i, of_dy * load<lanes>(b + i) * (s + silu * (1.0f - s)));
    store<lanes>(db + i, of_dy * silu);
  }
}

// ---- softmax, and the cross entropy under it

template <int lanes>
static INLINE float largest(const float* x, int64_t n, float most) {
  Floats<lanes> found = Floats<lanes>{} + most;
  for (int64_t i = 0; i + lanes <= n; i += lanes) found = larger<lanes>(load<lanes>(x + i), found);
  float numbers[lanes];
  store<lanes>(numbers, found);
  for (int lane = 0; lane < lanes; ++lane) most = std::max(most, numbers[lane]);
  return most;
}

// x <- exp((x - most) * scale), and their sum
template <int lanes>
static INLINE double exponentials(float* x, int64_t n, float most, float scale = 1.0f) {
  double sum = 0;
  for (int64_t begin = 0; begin + lanes <= n; begin += kChain * lanes) {
    Floats<lanes> part = {};
    for (int64_t i = begin; i + lanes <= std::min(n, begin + kChain * lanes); i += lanes) {
      const Floats<lanes> power = power_of_2<lanes>((load<lanes>(x + i) - most) * (scale * kLog2E));
      store<lanes>(x + i, power);
      part += power;
    }
    sum += sum_of<lanes>(part);
  }
  return sum;
}

template <int lanes>
static INLINE void multiply(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i + lanes <= n; i += lanes) store<lanes>(x + i, load<lanes>(x + i) * factor);
}

template <int lanes>
static INLINE void softmax(float* x, int64_t n, float scale) {
  const int64_t whole = n / lanes * lanes, left = n - whole;
  const float most = largest<1>(x + whole, left, largest<lanes>(x, n, -std::numeric_limits<float>::infinity()));
  const double sum = exponentials<lanes>(x, n, most, scale) + exponentials<1>(x + whole, left, most, scale);
  multiply<lanes>(x, n, float(1 / sum));
  multiply<1>(x + whole, left, float(1 / sum));
}

template <int lanes>
static INLINE float cross_entropy(float* x, int64_t n, int64_t target, float factor) {
  const int64_t whole = n / lanes * lanes, left = n - whole;
  const float most = largest<1>(x + whole, left, largest<lanes>(x, n, -std::numeric_limits<float>::infinity()));
  const float at_target = x[target];
  const double sum = exponentials<lanes>(x, n, most) + exponentials<1>(x + whole, left, most);
  multiply<lanes>(x, n, float(factor / sum));
  multiply<1>(x + whole, left, float(factor / sum));
  x[target] -= factor;
  return float(std::log(sum) + (double(most) - at_target));
}

// ---- the kinds: attributes for the compiler, numbers in a vector

#define KIND(kind, attributes, lanes)                                                                                   \
  namespace kind {                                                                                                      \
  attributes static double sum_of_squares(const float* x, int64_t n) { return minillama::sum_of_squares<lanes>(x, n); } \
  attributes static void normalize(const float* x, float scale, const float* gain, float* y, int64_t n) {               \
    const int64_t at = n / lanes * lanes;                                                                               \
    normalize_vectors<lanes>(x, scale, gain, y, n);                                                                     \
    normalize_vectors<1>(x + at, scale, gain + at, y + at, n - at);                                                     \
  }                                                                                                                     \
  attributes static void normalize_backward(const float* dy, const float* x, const float* gain, float scale, float* dx, \
                                            float* d_gain, int64_t n) {                                                 \
    minillama::normalize_backward<lanes>(dy, x, gain, scale, dx, d_gain, n);                                            \
  }                                                                                                                     \
  attributes static void gate(const float* a, const float* b, float* y, int64_t n) {                                    \
    const int64_t at = n / lanes * lanes;                                                                               \
    gate_vectors<lanes>(a, b, y, n);                                                                                    \
    gate_vectors<1>(a + at, b + at, y + at, n - at);                                                                    \
  }                                                                                                                     \
  attributes static void gate_backward(const float* dy, const float* a, const float* b, float* da, float* db,           \
                                       int64_t n) {                                                                     \
    const int64_t at = n / lanes * lanes;                                                                               \
    gate_backward_vectors<lanes>(dy, a, b, da, db, n);                                                                  \
    gate_backward_vectors<1>(dy + at, a + at, b + at, da + at, db + at, n - at);                                        \
  }                                                                                                                     \
  attributes static void softmax(float* x, int64_t n, float scale) { minillama::softmax<lanes>(x, n, scale); }          \
  attributes static float cross_entropy(float* x, int64_t n, int64_t target, float factor) {                            \
    return minillama::cross_entropy<lanes>(x, n, target, factor);                                                       \
  }                                                                                                                     \
  static const RowLoops loops{sum_of_squares, normalize, normalize_backward, gate, gate_backward, softmax, cross_entropy}; \
  }                                                                                                                     \
  static const RowLoops* const loops_##kind = &kind::loops;

KIND(plain, , kPlainLanes)
#if MINILLAMA_X86
KIND(avx2, AVX2, 8)
KIND(avx512, AVX512, 16)
#endif

const RowLoops& row_loops() { return *OF_KIND_IN_USE(loops); }

}  // namespace minillama
