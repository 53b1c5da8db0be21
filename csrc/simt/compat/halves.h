// The rest of cuda_fp16.h and cuda_bf16.h: conversions with every rounding, comparisons of pairs, saturating arithmetic and
// functions. Arithmetic is narrow_types.h's; a function is computed as float and rounded once to 16 bits.
#pragma once

#include "more_math.h"

namespace simt::program {

// Some float between x and its two neighbours that rounds, in any direction, to the same 16 bits as x does: cut off
// towards zero, with the last bit set where anything was cut ("round to odd").
inline float round_to_odd(long double x) {
  float r = float(x);
  if (x != x || static_cast<long double>(r) == x) return r;
  if (fabsl(r) > fabsl(x)) r = std::nextafter(r, 0.0f);
  return float_of(bits_of(r) | 1);
}

// x in 16 bits: to the nearest ('n'), towards zero ('z'), down ('d') or up ('u'). Out of range towards zero, or away from
// an infinity, ends at the largest number.
template <class T, char How>
T narrowed(long double exact) {
  const float x = round_to_odd(exact);
  T r(x);
  const float got = float(r);
  if (How == 'n' || got == x || x != x) return r;
  const bool up = How == 'u' || (How == 'z' && x < 0);
  if (up ? got > x : got < x) return r;
  if (r.bits << 1 & 0xffff) r.bits = uint16_t((got > 0) == up ? r.bits + 1 : r.bits - 1);
  else r.bits = up ? 0x0001 : 0x8001;
  return r;
}

template <char How> float whole(float x) {
  return How == 'n' ? std::nearbyint(x) : How == 'z' ? std::trunc(x) : How == 'd' ? std::floor(x) : std::ceil(x);
}
template <class T> T saturated(T x) { return float(x) > 0 ? float(x) < 1 ? x : T(1.0f) : T(0.0f); }  // of NaN: 0
template <class T> T not_negative(T x) { return float(x) < 0 ? T(0.0f) : x; }
template <class T> bool unordered(T a, T b) { return float(a) != float(a) || float(b) != float(b); }
template <class T> T of_bits(uint16_t bits) {
  T value;
  value.bits = bits;
  return value;
}

}  // namespace simt::program

// ---- conversions; `name` is half or bfloat16

#define SIMT_HALF_ROUNDINGS(X, ...) X(n, __VA_ARGS__) X(z, __VA_ARGS__) X(d, __VA_ARGS__) X(u, __VA_ARGS__)
#define SIMT_HALF_FROM(how, Type, name, number, N) \
  inline Type __##number##2##name##_r##how(N x) { return simt::program::narrowed<Type, #how[0]>(x); }
#define SIMT_HALF_TO(how, Type, name, number, N) \
  inline N __##name##2##number##_r##how(Type x) { return simt::to_integer<N>(simt::program::whole<#how[0]>(float(x))); }
#define SIMT_HALF_INTEGER(Type, name, number, N)                \
  SIMT_HALF_ROUNDINGS(SIMT_HALF_FROM, Type, name, number, N)    \
  SIMT_HALF_ROUNDINGS(SIMT_HALF_TO, Type, name, number, N)
#define SIMT_HALF_CONVERSIONS(Type, Pair, name)                                                              \
  SIMT_HALF_INTEGER(Type, name, int, int)                                                                    \
  SIMT_HALF_INTEGER(Type, name, uint, unsigned)                                                              \
  SIMT_HALF_INTEGER(Type, name, short, short)                                                                \
  SIMT_HALF_INTEGER(Type, name, ushort, unsigned short)                                                      \
  SIMT_HALF_INTEGER(Type, name, ll, long long)                                                               \
  SIMT_HALF_INTEGER(Type, name, ull, unsigned long long)                                                     \
  inline Type __float2##name##_rz(float x) { return simt::program::narrowed<Type, 'z'>(x); }                 \
  inline Type __float2##name##_rd(float x) { return simt::program::narrowed<Type, 'd'>(x); }                 \
  inline Type __float2##name##_ru(float x) { return simt::program::narrowed<Type, 'u'>(x); }                 \
  inline Type __double2##name(double x) { return simt::program::narrowed<Type, 'n'>(x); }                    \
  inline signed char __##name##2char_rz(Type x) { return simt::to_integer<signed char>(std::trunc(float(x))); } \
  inline unsigned char __##name##2uchar_rz(Type x) { return simt::to_integer<unsigned char>(std::trunc(float(x))); } \
  inline Pair make_##name##2(Type x, Type y) { return {x, y}; }

// ---- comparisons: of NaN false, in the forms with u (unordered) true; of a pair 1 or 0 each, a mask, or whether both hold

#define SIMT_HALF_COMPARE(Type, Pair, name, op)                                                                      \
  inline bool __h##name(Type a, Type b) { return !simt::program::unordered(a, b) && float(a) op float(b); }          \
  inline bool __h##name##u(Type a, Type b) { return simt::program::unordered(a, b) || float(a) op float(b); }        \
  inline Pair __h##name##2(Pair a, Pair b) { return {Type(float(__h##name(a.x, b.x))), Type(float(__h##name(a.y, b.y)))}; } \
  inline Pair __h##name##u2(Pair a, Pair b) {                                                                        \
    return {Type(float(__h##name##u(a.x, b.x))), Type(float(__h##name##u(a.y, b.y)))};                               \
  }                                                                                                                  \
  inline unsigned __h##name##2_mask(Pair a, Pair b) {                                                                \
    return (__h##name(a.x, b.x) ? 0xffffu : 0u) | (__h##name(a.y, b.y) ? 0xffff0000u : 0u);                          \
  }                                                                                                                  \
  inline unsigned __h##name##u2_mask(Pair a, Pair b) {                                                               \
    return (__h##name##u(a.x, b.x) ? 0xffffu : 0u) | (__h##name##u(a.y, b.y) ? 0xffff0000u : 0u);                    \
  }                                                                                                                  \
  inline bool __hb##name##2(Pair a, Pair b) { return __h##name(a.x, b.x) && __h##name(a.y, b.y); }                   \
  inline bool __hb##name##u2(Pair a, Pair b) { return __h##name##u(a.x, b.x) && __h##name##u(a.y, b.y); }            \
  inline bool operator op(Pair a, Pair b) { return __hb##name##2(a, b); }
#define SIMT_HALF_COMPARISONS(Type, Pair)                                                     \
  SIMT_HALF_COMPARE(Type, Pair, eq, ==)                                                       \
  SIMT_HALF_COMPARE(Type, Pair, ne, !=)                                                       \
  SIMT_HALF_COMPARE(Type, Pair, lt, <)                                                        \
  SIMT_HALF_COMPARE(Type, Pair, le, <=)                                                       \
  SIMT_HALF_COMPARE(Type, Pair, gt, >)                                                        \
  SIMT_HALF_COMPARE(Type, Pair, ge, >=)                                                       \
  inline bool __hisnan(Type a) { return float(a) != float(a); }                               \
  inline Pair __hisnan2(Pair a) { return {Type(float(__hisnan(a.x))), Type(float(__hisnan(a.y)))}; } \
  inline int __hisinf(Type a) { return std::isinf(float(a)) ? (float(a) > 0 ? 1 : -1) : 0; }

// ---- arithmetic by name

#define SIMT_HALF_BY_NAME(Type, Pair, name)                                                                \
  inline Type __h##name##_rn(Type a, Type b) { return __h##name(a, b); }                                   \
  inline Type __h##name##_sat(Type a, Type b) { return simt::program::saturated(__h##name(a, b)); }        \
  inline Pair __h##name##2_rn(Pair a, Pair b) { return {__h##name(a.x, b.x), __h##name(a.y, b.y)}; }       \
  inline Pair __h##name##2_sat(Pair a, Pair b) { return {__h##name##_sat(a.x, b.x), __h##name##_sat(a.y, b.y)}; }
#define SIMT_HALF_ARITHMETIC(Type, Pair)                                                                             \
  SIMT_HALF_BY_NAME(Type, Pair, add)                                                                                 \
  SIMT_HALF_BY_NAME(Type, Pair, sub)                                                                                 \
  SIMT_HALF_BY_NAME(Type, Pair, mul)                                                                                 \
  inline Pair __hsub2(Pair a, Pair b) { return a - b; }                                                              \
  inline Type __hdiv(Type a, Type b) { return a / b; }                                                               \
  inline Pair __h2div(Pair a, Pair b) { return {a.x / b.x, a.y / b.y}; }                                             \
  inline Type __habs(Type x) { return simt::program::of_bits<Type>(x.bits & 0x7fff); }                               \
  inline Type __hneg(Type x) { return simt::program::of_bits<Type>(x.bits ^ 0x8000); }                               \
  inline Pair __habs2(Pair a) { return {__habs(a.x), __habs(a.y)}; }                                                 \
  inline Pair __hneg2(Pair a) { return {__hneg(a.x), __hneg(a.y)}; }                                                 \
  inline Type __hfma_sat(Type a, Type b, Type c) { return simt::program::saturated(__hfma(a, b, c)); }               \
  inline Type __hfma_relu(Type a, Type b, Type c) { return simt::program::not_negative(__hfma(a, b, c)); }           \
  inline Pair __hfma2_sat(Pair a, Pair b, Pair c) { return {__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y)}; } \
  inline Pair __hfma2_relu(Pair a, Pair b, Pair c) { return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)}; } \
  inline Pair __hcmadd(Pair a, Pair b, Pair c) { /* of complex numbers: x is the real part */                        \
    return {__hfma(__hneg(a.y), b.y, __hfma(a.x, b.x, c.x)), __hfma(a.y, b.x, __hfma(a.x, b.y, c.y))};               \
  }                                                                                                                  \
  inline Type __hmax_nan(Type a, Type b) {                                                                           \
    return simt::program::unordered(a, b) ? simt::program::of_bits<Type>(0x7fff) : __hmax(a, b);                     \
  }                                                                                                                  \
  inline Type __hmin_nan(Type a, Type b) {                                                                           \
    return simt::program::unordered(a, b) ? simt::program::of_bits<Type>(0x7fff) : __hmin(a, b);                     \
  }                                                                                                                  \
  inline Pair __hmax2(Pair a, Pair b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                               \
  inline Pair __hmin2(Pair a, Pair b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                               \
  inline Pair __hmax2_nan(Pair a, Pair b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }                   \
  inline Pair __hmin2_nan(Pair a, Pair b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }                   \
  inline Pair operator/(Pair a, Pair b) { return __h2div(a, b); }                                                    \
  inline Pair operator-(Pair a) { return __hneg2(a); }                                                               \
  inline Pair operator+(Pair a) { return a; }                                                                        \
  inline Pair& operator+=(Pair& a, Pair b) { return a = a + b; }                                                     \
  inline Pair& operator-=(Pair& a, Pair b) { return a = a - b; }                                                     \
  inline Pair& operator*=(Pair& a, Pair b) { return a = a * b; }                                                     \
  inline Pair& operator/=(Pair& a, Pair b) { return a = a / b; }                                                     \
  inline Type& operator++(Type& a) { return a += Type(1.0f); }                                                       \
  inline Type& operator--(Type& a) { return a -= Type(1.0f); }                                                       \
  inline Type operator++(Type& a, int) { const Type old = a; return ++a, old; }                                      \
  inline Type operator--(Type& a, int) { const Type old = a; return --a, old; }

// ---- functions: hexp of a number, h2exp of a pair

#define SIMT_HALF_FUNCTION(Type, Pair, name, value)                                                        \
  inline Type h##name(Type half) { const float x = float(half); return Type(float(value)); }               \
  inline Pair h2##name(Pair pair) { return {h##name(pair.x), h##name(pair.y)}; }
#define SIMT_HALF_FUNCTIONS(Type, Pair)                                  \
  SIMT_HALF_FUNCTION(Type, Pair, exp, std::exp(x))                       \
  SIMT_HALF_FUNCTION(Type, Pair, exp2, std::exp2(x))                     \
  SIMT_HALF_FUNCTION(Type, Pair, exp10, std::pow(10.0, double(x)))       \
  SIMT_HALF_FUNCTION(Type, Pair, log, std::log(x))                       \
  SIMT_HALF_FUNCTION(Type, Pair, log2, std::log2(x))                     \
  SIMT_HALF_FUNCTION(Type, Pair, log10, std::log10(x))                   \
  SIMT_HALF_FUNCTION(Type, Pair, sin, std::sin(x))                       \
  SIMT_HALF_FUNCTION(Type, Pair, cos, std::cos(x))                       \
  SIMT_HALF_FUNCTION(Type, Pair, tanh, std::tanh(x))                     \
  SIMT_HALF_FUNCTION(Type, Pair, tanh_approx, std::tanh(x))              \
  SIMT_HALF_FUNCTION(Type, Pair, sqrt, std::sqrt(x))                     \
  SIMT_HALF_FUNCTION(Type, Pair, rsqrt, 1 / std::sqrt(double(x)))        \
  SIMT_HALF_FUNCTION(Type, Pair, rcp, 1 / x)                             \
  SIMT_HALF_FUNCTION(Type, Pair, floor, std::floor(x))                   \
  SIMT_HALF_FUNCTION(Type, Pair, ceil, std::ceil(x))                     \
  SIMT_HALF_FUNCTION(Type, Pair, trunc, std::trunc(x))                   \
  SIMT_HALF_FUNCTION(Type, Pair, rint, std::nearbyint(x))

#define SIMT_HALVES(Type, Pair, name)    \
  SIMT_HALF_CONVERSIONS(Type, Pair, name) \
  SIMT_HALF_COMPARISONS(Type, Pair)      \
  SIMT_HALF_ARITHMETIC(Type, Pair)       \
  SIMT_HALF_FUNCTIONS(Type, Pair)
SIMT_HALVES(__half, __half2, half)
SIMT_HALVES(__nv_bfloat16, __nv_bfloat162, bfloat16)

// ---- bits, and the places in a pair

#define SIMT_HALF_RAW(Type, Pair)                                                       \
  struct Type##_raw {                                                                   \
    unsigned short x;                                                                   \
    Type##_raw() = default;                                                             \
    constexpr Type##_raw(unsigned short bits) : x(bits) {}                              \
    Type##_raw(Type value) : x(value.bits) {}                                           \
    operator Type() const { return simt::program::of_bits<Type>(x); }                   \
  };                                                                                    \
  struct Pair##_raw {                                                                   \
    unsigned short x, y;                                                                \
    Pair##_raw() = default;                                                             \
    constexpr Pair##_raw(unsigned short low, unsigned short high) : x(low), y(high) {}  \
    Pair##_raw(Pair pair) : x(pair.x.bits), y(pair.y.bits) {}                           \
    operator Pair() const { return {Type##_raw(x), Type##_raw(y)}; }                    \
  };
SIMT_HALF_RAW(__half, __half2)
SIMT_HALF_RAW(__nv_bfloat16, __nv_bfloat162)
inline short __half_as_short(__half x) { return short(x.bits); }
inline __half __short_as_half(short bits) { return simt::program::of_bits<__half>(uint16_t(bits)); }
inline short __bfloat16_as_short(__nv_bfloat16 x) { return short(x.bits); }
inline __nv_bfloat16 __short_as_bfloat16(short bits) { return simt::program::of_bits<__nv_bfloat16>(uint16_t(bits)); }
#define SIMT_HALF_PLACES(Type, Pair, name)                                       \
  inline Pair __lowhigh2highlow(Pair pair) { return {pair.y, pair.x}; }          \
  inline Pair __lows2##name##2(Pair a, Pair b) { return {a.x, b.x}; }            \
  inline Pair __highs2##name##2(Pair a, Pair b) { return {a.y, b.y}; }           \
  inline Pair __low2##name##2(Pair pair) { return {pair.x, pair.x}; }            \
  inline Pair __high2##name##2(Pair pair) { return {pair.y, pair.y}; }           \
  inline float __low2float(Pair pair) { return float(pair.x); }                  \
  inline float __high2float(Pair pair) { return float(pair.y); }
SIMT_HALF_PLACES(__half, __half2, half)
SIMT_HALF_PLACES(__nv_bfloat16, __nv_bfloat162, bfloat16)

inline __half2 atomicAdd(__half2* at, __half2 value, SIMT_HERE) {
  return {atomicAdd(&at->x, value.x, where), atomicAdd(&at->y, value.y, where)};
}
inline __nv_bfloat162 atomicAdd(__nv_bfloat162* at, __nv_bfloat162 value, SIMT_HERE) {
  return {atomicAdd(&at->x, value.x, where), atomicAdd(&at->y, value.y, where)};
}
