// Integers packed in a word: two of 16 bits or four of 8, by CUDA's names (__vadd2, __vmaxu4, __vcmpgts2 ...); and the
// conversions and functions that more_intrinsics.h and more_math.h leave out.
#pragma once

#include <cfenv>

#include "more_math.h"

namespace simt::program {

// Each piece of `bits` bits of a and b, as the signed or unsigned S, through `combine`; what it gives wraps to its piece.
template <class S, class Combine>
unsigned by_piece(unsigned a, unsigned b, Combine combine) {
  constexpr int bits = 8 * sizeof(S);
  unsigned result = 0;
  for (int at = 0; at < 32; at += bits)
    result |= (unsigned(combine(int(S(a >> at)), int(S(b >> at)))) & ((1u << bits) - 1)) << at;
  return result;
}
template <class S, class Combine>
unsigned sum_of_pieces(unsigned a, unsigned b, Combine combine) {
  unsigned sum = 0;
  for (int at = 0; at < 32; at += int(8 * sizeof(S))) sum += unsigned(combine(int(S(a >> at)), int(S(b >> at))));
  return sum;
}
template <class S> int held(int x) {  // in the range of S
  return std::min(std::max(x, int(std::numeric_limits<S>::min())), int(std::numeric_limits<S>::max()));
}

}  // namespace simt::program

#define SIMT_PACKED(name, S, value)                                                                        \
  inline unsigned name(unsigned a, unsigned b) {                                                           \
    return simt::program::by_piece<S>(a, b, [](int x, int y) { (void)y; return value; });                  \
  }
#define SIMT_PACKED_ONE(name, S, value)                                                                    \
  inline unsigned name(unsigned a) {                                                                       \
    return simt::program::by_piece<S>(a, 0, [](int x, int) { return value; });                             \
  }
#define SIMT_PACKED_COMPARE(name, n, S, condition)                                                         \
  SIMT_PACKED(__vcmp##name##n, S, (condition) ? -1 : 0)                                                    \
  SIMT_PACKED(__vset##name##n, S, (condition) ? 1 : 0)
#define SIMT_PACKED_ALL(n, S, U)                                                                           \
  SIMT_PACKED_ONE(__vabs##n, S, x < 0 ? -x : x)                                                            \
  SIMT_PACKED_ONE(__vabsss##n, S, simt::program::held<S>(x < 0 ? -x : x))                                  \
  SIMT_PACKED_ONE(__vneg##n, S, -x)                                                                        \
  SIMT_PACKED_ONE(__vnegss##n, S, simt::program::held<S>(-x))                                              \
  SIMT_PACKED(__vadd##n, U, x + y)                                                                         \
  SIMT_PACKED(__vsub##n, U, x - y)                                                                         \
  SIMT_PACKED(__vaddss##n, S, simt::program::held<S>(x + y))                                               \
  SIMT_PACKED(__vsubss##n, S, simt::program::held<S>(x - y))                                               \
  SIMT_PACKED(__vaddus##n, U, simt::program::held<U>(x + y))                                               \
  SIMT_PACKED(__vsubus##n, U, simt::program::held<U>(x - y))                                               \
  SIMT_PACKED(__vavgs##n, S, (x + y + (x + y >= 0)) >> 1)                                                  \
  SIMT_PACKED(__vavgu##n, U, (x + y + 1) >> 1)                                                             \
  SIMT_PACKED(__vhaddu##n, U, (x + y) >> 1)                                                                \
  SIMT_PACKED(__vmaxs##n, S, x < y ? y : x)                                                                \
  SIMT_PACKED(__vmaxu##n, U, x < y ? y : x)                                                                \
  SIMT_PACKED(__vmins##n, S, y < x ? y : x)                                                                \
  SIMT_PACKED(__vminu##n, U, y < x ? y : x)                                                                \
  SIMT_PACKED(__vabsdiffs##n, S, x < y ? y - x : x - y)                                                    \
  SIMT_PACKED(__vabsdiffu##n, U, x < y ? y - x : x - y)                                                    \
  SIMT_PACKED_COMPARE(eq, n, U, x == y)                                                                    \
  SIMT_PACKED_COMPARE(ne, n, U, x != y)                                                                    \
  SIMT_PACKED_COMPARE(lts, n, S, x < y)                                                                    \
  SIMT_PACKED_COMPARE(ltu, n, U, x < y)                                                                    \
  SIMT_PACKED_COMPARE(les, n, S, x <= y)                                                                   \
  SIMT_PACKED_COMPARE(leu, n, U, x <= y)                                                                   \
  SIMT_PACKED_COMPARE(gts, n, S, x > y)                                                                    \
  SIMT_PACKED_COMPARE(gtu, n, U, x > y)                                                                    \
  SIMT_PACKED_COMPARE(ges, n, S, x >= y)                                                                   \
  SIMT_PACKED_COMPARE(geu, n, U, x >= y)                                                                   \
  inline unsigned __vsads##n(unsigned a, unsigned b) {                                                     \
    return simt::program::sum_of_pieces<S>(a, b, [](int x, int y) { return x < y ? y - x : x - y; });      \
  }                                                                                                        \
  inline unsigned __vsadu##n(unsigned a, unsigned b) {                                                     \
    return simt::program::sum_of_pieces<U>(a, b, [](int x, int y) { return x < y ? y - x : x - y; });      \
  }
SIMT_PACKED_ALL(2, int16_t, uint16_t)
SIMT_PACKED_ALL(4, int8_t, uint8_t)

#define SIMT_DP2A(name, Result, A, B, place)                                                               \
  inline Result name(Result a, Result b, Result c) { /* two halves of a by two bytes of b */               \
    return c + Result(A(a)) * Result(B(b >> place)) + Result(A(a >> 16)) * Result(B(b >> (place + 8)));    \
  }
SIMT_DP2A(__dp2a_lo, int, int16_t, int8_t, 0)
SIMT_DP2A(__dp2a_lo, unsigned, uint16_t, uint8_t, 0)
SIMT_DP2A(__dp2a_hi, int, int16_t, int8_t, 16)
SIMT_DP2A(__dp2a_hi, unsigned, uint16_t, uint8_t, 16)

// The offset-th set bit from `base` on, upwards, or downwards where it is negative; base itself where it is 0 and set.
inline unsigned __fns(unsigned mask, unsigned base, int offset) {
  if (offset == 0) return mask >> base & 1 ? base : ~0u;
  for (int at = int(base), left = offset; at >= 0 && at < 32; at += offset < 0 ? -1 : 1)
    if (mask >> at & 1 && (left += offset < 0 ? 1 : -1) == 0) return unsigned(at);
  return ~0u;
}

// ---- wide numbers to narrower ones with every rounding

namespace simt::program {
template <char How, class T>
T converted(long double exact) {  // its mantissa holds every 64-bit integer and every double
  const T r = T(exact);
  return rounded<How>(r, exact < r ? T(-1) : exact > r ? T(1) : T(0));
}
__attribute__((noinline)) inline double fused_towards(int mode, volatile double a, volatile double b, volatile double c) {
  const int before = std::fegetround();
  std::fesetround(mode);
  volatile double r = std::fma(a, b, c);
  std::fesetround(before);
  return r;
}
}  // namespace simt::program
#define SIMT_CONVERTED(how, h, mode)                                                                       \
  inline float __double2float_##how(double x) { return simt::program::converted<h, float>(x); }            \
  inline float __int2float_##how(int x) { return simt::program::converted<h, float>(x); }                  \
  inline float __uint2float_##how(unsigned x) { return simt::program::converted<h, float>(x); }            \
  inline float __ll2float_##how(long long x) { return simt::program::converted<h, float>(x); }             \
  inline float __ull2float_##how(unsigned long long x) { return simt::program::converted<h, float>(x); }   \
  inline double __ll2double_##how(long long x) { return simt::program::converted<h, double>(x); }          \
  inline double __ull2double_##how(unsigned long long x) { return simt::program::converted<h, double>(x); } \
  inline double __fma_##how(double a, double b, double c) { return simt::program::fused_towards(mode, a, b, c); } \
  inline float __fmaf_ieee_##how(float a, float b, float c) { return __fmaf_##how(a, b, c); }
SIMT_CONVERTED(rz, 'z', FE_TOWARDZERO)
SIMT_CONVERTED(rd, 'd', FE_DOWNWARD)
SIMT_CONVERTED(ru, 'u', FE_UPWARD)
inline float __fmaf_ieee_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline double fdivide(double a, double b) { return a / b; }
inline long long llmin(long long a, long long b) { return b < a ? b : a; }
inline long long llmax(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline double cyl_bessel_i0(double x) { return std::cyl_bessel_i(0.0, std::fabs(x)); }
inline double cyl_bessel_i1(double x) { return std::copysign(std::cyl_bessel_i(1.0, std::fabs(x)), x); }
inline float cyl_bessel_i0f(float x) { return float(cyl_bessel_i0(x)); }
inline float cyl_bessel_i1f(float x) { return float(cyl_bessel_i1(x)); }
inline double norm(int n, const double* x) {
  double size = 0;
  for (int i = 0; i < n; ++i) size = std::hypot(size, x[i]);
  return size;
}
inline float normf(int n, const float* x) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += double(x[i]) * x[i];
  return float(std::sqrt(squares));
}
inline double rnorm(int n, const double* x) { return 1 / norm(n, x); }
inline float rnormf(int n, const float* x) { return 1 / normf(n, x); }
inline double norm4d(double a, double b, double c, double d) { return std::hypot(std::hypot(a, b), std::hypot(c, d)); }
inline double rnorm3d(double a, double b, double c) { return 1 / std::hypot(a, b, c); }
inline double rnorm4d(double a, double b, double c, double d) { return 1 / norm4d(a, b, c, d); }
inline float rnorm4df(float a, float b, float c, float d) { return float(rnorm4d(a, b, c, d)); }
template <class T, class U, class V>
T atomicCAS_block(T* address, U expected, V wanted, SIMT_HERE) { return atomicCAS(address, expected, wanted, where); }
