// Numbers in 8 bits: e4m3 (4 bits of exponent, 3 of mantissa; up to 448, no infinity) and e5m2 (up to 57344, infinity), in
// ones, twos and fours. Not here: e8m0. Conversions round to nearest even, once.
// Layout: OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1.
#pragma once
#include "cuda_runtime.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

namespace simt::program {

// Beyond the largest number: that number where `saturate` says so, else NaN (e4m3) or infinity (e5m2).
inline unsigned char to_fp8(long double exact, __nv_saturation_t saturate, __nv_fp8_interpretation_t kind) {
  const float x = round_to_odd(exact), size = std::fabs(x);
  const int mantissa = kind == __NV_E4M3 ? 3 : 2, least = kind == __NV_E4M3 ? -6 : -14;  // exponent of normal numbers
  const unsigned sign = bits_of(x) >> 24 & 0x80, largest = kind == __NV_E4M3 ? 0x7e : 0x7b;
  if (x != x) return (unsigned char)(kind == __NV_E4M3 ? sign | 0x7f : sign | 0x7e);
  int exponent = least;
  if (size >= std::ldexp(1.0f, least)) std::frexp(size, &exponent), --exponent;
  if (std::isinf(size)) exponent = 20;
  const float step = std::ldexp(1.0f, exponent - mantissa);  // between neighbours
  const unsigned count = exponent >= 20 ? 1u << 20 : unsigned(std::nearbyint(size / step));
  const unsigned code = exponent >= 20 ? 0x100 : (unsigned(exponent - least) << mantissa) + count;
  if (code > largest) return (unsigned char)(sign | (saturate ? largest : kind == __NV_E4M3 ? 0x7fu : 0x7cu));
  return (unsigned char)(sign | code);
}

inline float from_fp8(unsigned char bits, __nv_fp8_interpretation_t kind) {
  const int mantissa = kind == __NV_E4M3 ? 3 : 2, least = kind == __NV_E4M3 ? -6 : -14;
  const int code = bits & 0x7f, exponent = code >> mantissa, part = code & ((1 << mantissa) - 1);
  const float sign = bits & 0x80 ? -1.0f : 1.0f;
  if (kind == __NV_E4M3 ? code == 0x7f : code > 0x7c) return NAN;
  if (kind == __NV_E5M2 && code == 0x7c) return sign * HUGE_VALF;
  if (exponent == 0) return sign * std::ldexp(float(part), least - mantissa);
  return sign * std::ldexp(float((1 << mantissa) + part), exponent - 1 + least - mantissa);
}

}  // namespace simt::program

// ---- functions on the bits

inline __nv_fp8_storage_t __nv_cvt_double_to_fp8(double x, __nv_saturation_t s, __nv_fp8_interpretation_t k) {
  return simt::program::to_fp8(x, s, k);
}
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t s, __nv_fp8_interpretation_t k) {
  return simt::program::to_fp8(x, s, k);
}
inline __nv_fp8_storage_t __nv_cvt_halfraw_to_fp8(__half_raw x, __nv_saturation_t s, __nv_fp8_interpretation_t k) {
  return simt::program::to_fp8(float(__half(x)), s, k);
}
inline __nv_fp8_storage_t __nv_cvt_bfloat16raw_to_fp8(__nv_bfloat16_raw x, __nv_saturation_t s,
                                                      __nv_fp8_interpretation_t k) {
  return simt::program::to_fp8(float(__nv_bfloat16(x)), s, k);
}
#define SIMT_FP8_PAIR(from, Pair, x_of, y_of)                                                                     \
  inline __nv_fp8x2_storage_t __nv_cvt_##from##_to_fp8x2(Pair p, __nv_saturation_t s, __nv_fp8_interpretation_t k) { \
    return __nv_fp8x2_storage_t(simt::program::to_fp8(x_of, s, k) | simt::program::to_fp8(y_of, s, k) << 8);      \
  }
SIMT_FP8_PAIR(double2, double2, p.x, p.y)
SIMT_FP8_PAIR(float2, float2, p.x, p.y)
SIMT_FP8_PAIR(halfraw2, __half2_raw, simt::from_half(p.x), simt::from_half(p.y))
SIMT_FP8_PAIR(bfloat16raw2, __nv_bfloat162_raw, simt::from_bfloat16(p.x), simt::from_bfloat16(p.y))
#undef SIMT_FP8_PAIR
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t x, __nv_fp8_interpretation_t k) {
  return __half(simt::program::from_fp8(x, k));
}
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t x, __nv_fp8_interpretation_t k) {
  return __half2(__half(simt::program::from_fp8((unsigned char)x, k)),
                 __half(simt::program::from_fp8((unsigned char)(x >> 8), k)));
}

// ---- types; conversions from wider numbers saturate, those to integers cut off and saturate

#define SIMT_FP8(name, kind)                                                                                       \
  struct __nv_fp8_##name {                                                                                         \
    __nv_fp8_storage_t __x;                                                                                        \
    __nv_fp8_##name() = default;                                                                                   \
    template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>                                          \
    explicit __nv_fp8_##name(N x) : __x(simt::program::to_fp8(x, __NV_SATFINITE, kind)) {}                         \
    explicit __nv_fp8_##name(__half x) : __nv_fp8_##name(float(x)) {}                                              \
    explicit __nv_fp8_##name(__nv_bfloat16 x) : __nv_fp8_##name(float(x)) {}                                       \
    explicit operator float() const { return simt::program::from_fp8(__x, kind); }                                 \
    explicit operator double() const { return float(*this); }                                                      \
    explicit operator __half() const { return __half(float(*this)); }                                              \
    explicit operator __nv_bfloat16() const { return __nv_bfloat16(float(*this)); }                                \
    explicit operator bool() const { return float(*this) != 0; }                                                   \
    template <class N, class = std::enable_if_t<std::is_integral_v<N> && !std::is_same_v<N, bool>>>                \
    explicit operator N() const { return simt::to_integer<N>(std::trunc(float(*this))); }                           \
  };                                                                                                               \
  struct alignas(2) __nv_fp8x2_##name {                                                                            \
    __nv_fp8x2_storage_t __x;                                                                                      \
    __nv_fp8x2_##name() = default;                                                                                 \
    explicit __nv_fp8x2_##name(float2 p) : __x(__nv_cvt_float2_to_fp8x2(p, __NV_SATFINITE, kind)) {}               \
    explicit __nv_fp8x2_##name(double2 p) : __x(__nv_cvt_double2_to_fp8x2(p, __NV_SATFINITE, kind)) {}             \
    explicit __nv_fp8x2_##name(__half2 p) : __x(__nv_cvt_halfraw2_to_fp8x2(p, __NV_SATFINITE, kind)) {}            \
    explicit __nv_fp8x2_##name(__nv_bfloat162 p) : __x(__nv_cvt_bfloat16raw2_to_fp8x2(p, __NV_SATFINITE, kind)) {} \
    explicit operator __half2() const { return __nv_cvt_fp8x2_to_halfraw2(__x, kind); }                            \
    explicit operator float2() const {                                                                             \
      return {simt::program::from_fp8((unsigned char)__x, kind), simt::program::from_fp8((unsigned char)(__x >> 8), kind)}; \
    }                                                                                                              \
  };                                                                                                               \
  struct alignas(4) __nv_fp8x4_##name {                                                                            \
    __nv_fp8x4_storage_t __x;                                                                                      \
    __nv_fp8x4_##name() = default;                                                                                 \
    __nv_fp8x4_##name(__nv_fp8x2_##name low, __nv_fp8x2_##name high) : __x(low.__x | unsigned(high.__x) << 16) {}  \
    explicit __nv_fp8x4_##name(float4 v)                                                                           \
        : __nv_fp8x4_##name(__nv_fp8x2_##name(float2{v.x, v.y}), __nv_fp8x2_##name(float2{v.z, v.w})) {}           \
    explicit __nv_fp8x4_##name(double4 v)                                                                          \
        : __nv_fp8x4_##name(__nv_fp8x2_##name(double2{v.x, v.y}), __nv_fp8x2_##name(double2{v.z, v.w})) {}         \
    __nv_fp8x4_##name(__half2 low, __half2 high) : __nv_fp8x4_##name(__nv_fp8x2_##name(low), __nv_fp8x2_##name(high)) {} \
    __nv_fp8x4_##name(__nv_bfloat162 low, __nv_bfloat162 high)                                                     \
        : __nv_fp8x4_##name(__nv_fp8x2_##name(low), __nv_fp8x2_##name(high)) {}                                    \
    explicit operator float4() const {                                                                             \
      __nv_fp8x2_##name low, high;                                                                                 \
      low.__x = __nv_fp8x2_storage_t(__x), high.__x = __nv_fp8x2_storage_t(__x >> 16);                             \
      const float2 a(low), b(high);                                                                                \
      return {a.x, a.y, b.x, b.y};                                                                                 \
    }                                                                                                              \
  };
SIMT_FP8(e4m3, __NV_E4M3)
SIMT_FP8(e5m2, __NV_E5M2)
#undef SIMT_FP8
