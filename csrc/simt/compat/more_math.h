// Rounding that is asked for by name, conversions, special functions.
#pragma once

#include "more_intrinsics.h"

namespace simt::program {
// The neighbour of r that the rounding wants, given what r lacks to be exact (its sign suffices). n: nearest.
template <char How, class T>
T rounded(T r, T lacks) {
  if (How == 'n' || lacks == 0 || lacks != lacks || std::isinf(r)) return r;
  const bool down = How == 'd' || (How == 'z' && r > 0), up = How == 'u' || (How == 'z' && r < 0);
  if (down && lacks < 0) return std::nextafter(r, -std::numeric_limits<T>::infinity());
  if (up && lacks > 0) return std::nextafter(r, std::numeric_limits<T>::infinity());
  return r;
}
template <char How, class T> T add(T a, T b) {
  a = unfused(a), b = unfused(b);
  const T r = a + b, t = r - a;
  return rounded<How>(r, (a - (r - t)) + (b - t));  // Knuth's two-sum
}
template <char How, class T> T multiply(T a, T b) { return rounded<How>(a * b, std::fma(a, b, -(a * b))); }
template <char How, class T> T divide(T a, T b) {
  const T r = a / b, rest = std::fma(-r, b, a);
  return rounded<How>(r, b < 0 ? -rest : rest);
}
template <char How, class T> T root(T a) { return rounded<How>(std::sqrt(a), std::fma(-std::sqrt(a), std::sqrt(a), a)); }
template <char How> float fused(float a, float b, float c) {  // a b is exact as a double
  const double product = double(a) * b, sum = product + c, t = sum - product;
  const float r = float(sum);
  return rounded<How>(r, float(sum - double(r)) + float((product - (sum - t)) + (double(c) - t)));
}
}  // namespace simt::program

#define SIMT_ROUNDED(how, h)                                                                    \
  inline float __fadd_##how(float a, float b) { return simt::program::add<h>(a, b); }          \
  inline float __fsub_##how(float a, float b) { return simt::program::add<h>(a, -b); }         \
  inline float __fmul_##how(float a, float b) { return simt::program::multiply<h>(a, b); }     \
  inline float __fdiv_##how(float a, float b) { return simt::program::divide<h>(a, b); }       \
  inline float __frcp_##how(float a) { return simt::program::divide<h>(1.0f, a); }             \
  inline float __fsqrt_##how(float a) { return simt::program::root<h>(a); }                    \
  inline float __fmaf_##how(float a, float b, float c) { return simt::program::fused<h>(a, b, c); } \
  inline double __dadd_##how(double a, double b) { return simt::program::add<h>(a, b); }       \
  inline double __dsub_##how(double a, double b) { return simt::program::add<h>(a, -b); }      \
  inline double __dmul_##how(double a, double b) { return simt::program::multiply<h>(a, b); }  \
  inline double __ddiv_##how(double a, double b) { return simt::program::divide<h>(a, b); }    \
  inline double __drcp_##how(double a) { return simt::program::divide<h>(1.0, a); }            \
  inline double __dsqrt_##how(double a) { return simt::program::root<h>(a); }
SIMT_ROUNDED(rd, 'd')
SIMT_ROUNDED(ru, 'u')
SIMT_ROUNDED(rz, 'z')
#undef SIMT_ROUNDED
inline double __dsub_rn(double a, double b) { return simt::unfused(a) - simt::unfused(b); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __drcp_rn(double a) { return 1 / a; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

#define SIMT_CONVERT(from, F, to, T)                                                                      \
  inline T __##from##2##to##_rn(F x) { return simt::to_integer<T>(std::nearbyint(x)); }                    \
  inline T __##from##2##to##_rz(F x) { return simt::to_integer<T>(std::trunc(x)); }                        \
  inline T __##from##2##to##_rd(F x) { return simt::to_integer<T>(std::floor(x)); }                        \
  inline T __##from##2##to##_ru(F x) { return simt::to_integer<T>(std::ceil(x)); }
SIMT_CONVERT(float, float, ll, long long)
SIMT_CONVERT(float, float, ull, unsigned long long)
SIMT_CONVERT(double, double, ll, long long)
SIMT_CONVERT(double, double, ull, unsigned long long)
#undef SIMT_CONVERT
inline unsigned __double2uint_rn(double x) { return simt::to_integer<unsigned>(std::nearbyint(x)); }
inline unsigned __double2uint_rz(double x) { return simt::to_integer<unsigned>(std::trunc(x)); }
inline double __uint2double_rn(unsigned x) { return x; }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __ll2double_rn(long long x) { return double(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline double __hiloint2double(int high, int low) { return __longlong_as_double((long long)high << 32 | unsigned(low)); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline int __hadd(int a, int b) { return int((int64_t{a} + b) >> 1); }
inline int __rhadd(int a, int b) { return int((int64_t{a} + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return unsigned((uint64_t{a} + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return unsigned((uint64_t{a} + b + 1) >> 1); }

inline double rcbrt(double x) { return 1 / std::cbrt(x); }
inline float rcbrtf(float x) { return float(rcbrt(x)); }
inline double rhypot(double x, double y) { return 1 / std::hypot(x, y); }
inline float rhypotf(float x, float y) { return float(rhypot(x, y)); }
inline double norm3d(double x, double y, double z) { return std::hypot(x, y, z); }
inline float norm3df(float x, float y, float z) { return float(norm3d(x, y, z)); }
inline float rnorm3df(float x, float y, float z) { return float(1 / norm3d(x, y, z)); }
inline float norm4df(float x, float y, float z, float w) { return float(std::hypot(norm3d(x, y, z), double(w))); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline void sincospi(double x, double* s, double* c) { *s = sinpi(x), *c = cospi(x); }
inline double erfcx(double x) {  // exp(x x) erfc(x); from 25 on by the asymptotic series, DLMF 7.12.1
  if (x < 25) {
    const double square = x * x, lacks = std::fma(x, x, -square), power = std::exp(square) * std::erfc(x);
    return std::isfinite(power) ? power + power * lacks : power;
  }
  const double t = 1 / (2 * x * x);
  double sum = 1;
  for (int n = 7; n > 0; --n) sum = 1 - (2 * n - 1) * t * sum;
  return sum / x * (M_2_SQRTPI / 2);
}
inline float erfcxf(float x) { return float(erfcx(x)); }

namespace simt::program {
// The x > 0 whose function(x) is `wanted`, from a start nearby; `slope` is the sign of its derivative 2/sqrt(pi) exp(-x x).
template <class Function>
double solved(Function function, double x, double wanted, int slope) {
  for (int i = 0; i < 60; ++i) {
    const double step = slope * (function(x) - wanted) / (M_2_SQRTPI * std::exp(-x * x));
    x -= step / (1 + x * step);  // Halley's method: the second derivative is -2 x times the first
    if (!(std::fabs(step) > 1e-16 * std::fabs(x))) break;
  }
  return x;
}
inline double from_tail(double tail) {  // the x whose erfc is this, at most 1/2
  return solved([](double x) { return std::erfc(x); }, std::sqrt(-std::log(tail)), tail, -1);
}
}  // namespace simt::program
inline double erfinv(double y) {
  const double size = std::fabs(y);
  if (!(size < 1)) return size == 1 ? std::copysign(HUGE_VAL, y) : NAN;
  if (size > 0.5) return std::copysign(simt::program::from_tail(1 - size), y);
  if (size < 1e-9) return y * (1 / M_2_SQRTPI);
  return std::copysign(simt::program::solved([](double x) { return std::erf(x); }, size / M_2_SQRTPI, size, 1), y);
}
inline double erfcinv(double y) {  // 1 - y and 2 - y are exact where they are used
  if (!(y > 0 && y < 2)) return y == 0 ? HUGE_VAL : y == 2 ? -HUGE_VAL : NAN;
  if (y < 0.5) return simt::program::from_tail(y);
  return y > 1.5 ? -simt::program::from_tail(2 - y) : erfinv(1 - y);
}
inline double normcdfinv(double p) { return -M_SQRT2 * erfcinv(2 * p); }
inline float normcdfinvf(float p) { return float(normcdfinv(p)); }
inline float erfinvf(float y) { return float(erfinv(y)); }
inline float erfcinvf(float y) { return float(erfcinv(y)); }

// The older names without a mask: the lanes that are together here.
#define SIMT_UNMASKED(name)                                                                                     \
  template <class T, class U> T name(T value, U which, int width = 32, SIMT_HERE) {                             \
    return name##_sync(simt::converged(#name "()", where), value, which, width, where);                         \
  }
SIMT_UNMASKED(__shfl)
SIMT_UNMASKED(__shfl_up)
SIMT_UNMASKED(__shfl_down)
SIMT_UNMASKED(__shfl_xor)
#undef SIMT_UNMASKED
inline unsigned __ballot(int p, SIMT_HERE) { return __ballot_sync(simt::converged("__ballot()", where), p, where); }
inline int __any(int p, SIMT_HERE) { return __any_sync(simt::converged("__any()", where), p, where); }
inline int __all(int p, SIMT_HERE) { return __all_sync(simt::converged("__all()", where), p, where); }
