// __half and __nv_bfloat16: stored in 16 bits, computed as double and rounded once, to nearest even, by each operation.
// Default constructors do nothing, so that arrays of them may lie in shared memory.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace simt {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;  // NaN, as the GPU writes it
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

inline uint16_t to_half(float value) {
  uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return 0x7fff;                     // NaN, as the GPU writes it
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);   // 65520 and more round to infinity
  if (bits < 0x38800000)                                    // below 2^-14: steps of 2^-24, as floats near 0.5 have
    return uint16_t(sign | (bits_of(float_of(bits) + 0.5f) - 0x3f000000));
  return uint16_t(sign | ((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13));
}

inline float from_half(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31, rest = half & 0x7fffu;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest < 0x400) return (sign ? -0x1p-24f : 0x1p-24f) * float(rest);
  return float_of(sign | ((rest << 13) + 0x38000000));
}

// ---- one rounding: an intermediate result that is inexact gets an odd last bit. Whatever it is then rounded to that is two
// bits narrower or more is what rounding the exact result at once gives (Boldo and Melquiond, IEEE TC 57(4), 2008).

inline float odd_float(double value) {
  const float near = float(value);
  if (double(near) == value || value != value) return near;
  uint32_t bits = bits_of(near);
  if (std::fabs(near) > std::fabs(value)) --bits;  // towards zero, also from infinity to the largest number
  return float_of(bits | 1);
}

inline double odd_sum(double a, double b) {
  const double sum = a + b, t = sum - a, lacks = (a - (sum - t)) + (b - t);  // Knuth's two-sum: a + b is sum + lacks
  if (!(lacks < 0 || lacks > 0) || std::isinf(sum)) return sum;
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  if ((lacks < 0) != (sum < 0)) --bits;
  bits |= 1;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return odd;
}

template <class I>
double odd_double(I value) {  // of an integer, which may have more bits than a double
  const bool negative = value < 0;
  uint64_t size = negative ? 0 - uint64_t(value) : uint64_t(value);
  if (size >> 53) size = (size & ~uint64_t{0x7ff}) | (size & 0x7ff ? 0x800 : 0);
  return negative ? -double(size) : double(size);
}

}  // namespace simt

#define SIMT_NARROW(Type, Pair, encode, decode)                                                                \
  struct alignas(2) Type {                                                                                     \
    uint16_t bits;                                                                                             \
    Type() = default;                                                                                          \
    Type(float value) : bits(simt::encode(value)) {}                                                           \
    Type(double value) : Type(simt::odd_float(value)) {}                                                       \
    template <class I, class = std::enable_if_t<std::is_integral<I>::value>>                                   \
    Type(I value) : Type(simt::odd_double(value)) {}                                                           \
    operator float() const { return simt::decode(bits); }                                                      \
    Type& operator+=(Type b) { return *this = Type(double(float(*this)) + double(float(b))); }                 \
    Type& operator-=(Type b) { return *this = Type(double(float(*this)) - double(float(b))); }                 \
    Type& operator*=(Type b) { return *this = Type(double(float(*this)) * double(float(b))); }                 \
    Type& operator/=(Type b) { return *this = Type(double(float(*this)) / double(float(b))); }                 \
  };                                                                                                           \
  inline Type operator+(Type a, Type b) { return a += b; }                                                     \
  inline Type operator-(Type a, Type b) { return a -= b; }                                                     \
  inline Type operator*(Type a, Type b) { return a *= b; }                                                     \
  inline Type operator/(Type a, Type b) { return a /= b; }                                                     \
  inline Type operator-(Type a) { return a.bits ^= 0x8000, a; }                                                \
  inline bool operator==(Type a, Type b) { return float(a) == float(b); }                                      \
  inline bool operator!=(Type a, Type b) { return float(a) != float(b); }                                      \
  inline bool operator<(Type a, Type b) { return float(a) < float(b); }                                        \
  inline bool operator>(Type a, Type b) { return float(a) > float(b); }                                        \
  inline bool operator<=(Type a, Type b) { return float(a) <= float(b); }                                      \
  inline bool operator>=(Type a, Type b) { return float(a) >= float(b); }                                      \
  inline Type __hadd(Type a, Type b) { return a + b; }                                                         \
  inline Type __hsub(Type a, Type b) { return a - b; }                                                         \
  inline Type __hmul(Type a, Type b) { return a * b; }                                                         \
  inline Type __hfma(Type a, Type b, Type c) { /* the product is exact */                                      \
    return Type(simt::odd_sum(double(float(a)) * double(float(b)), double(float(c))));                         \
  }                                                                                                            \
  inline Type __hmax(Type a, Type b) { /* +0 is more than -0 */                                                \
    return a == b ? (a.bits &= b.bits, a) : Type(float(b != b || a > b ? a : b));                              \
  }                                                                                                            \
  inline Type __hmin(Type a, Type b) {                                                                         \
    return a == b ? (a.bits |= b.bits, a) : Type(float(b != b || a < b ? a : b));                              \
  }                                                                                                            \
  struct alignas(4) Pair {                                                                                     \
    Type x, y;                                                                                                 \
    Pair() = default;                                                                                          \
    Pair(Type x, Type y) : x(x), y(y) {}                                                                       \
  };                                                                                                           \
  inline Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }                                     \
  inline Pair operator-(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }                                     \
  inline Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }                                     \
  inline Pair __hadd2(Pair a, Pair b) { return a + b; }                                                        \
  inline Pair __hmul2(Pair a, Pair b) { return a * b; }                                                        \
  inline Pair __hfma2(Pair a, Pair b, Pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

SIMT_NARROW(__half, __half2, to_half, from_half)
SIMT_NARROW(__nv_bfloat16, __nv_bfloat162, to_bfloat16, from_bfloat16)
#undef SIMT_NARROW

using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float __half2float(__half x) { return float(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half __low2half(__half2 pair) { return pair.x; }
inline __half __high2half(__half2 pair) { return pair.y; }
inline float2 __half22float2(__half2 pair) { return {float(pair.x), float(pair.y)}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return float(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 pair) { return pair.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 pair) { return pair.y; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {float(pair.x), float(pair.y)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
