// Device functions that other people's programs use and the project's own kernels do not.
#pragma once

#include <limits>
#include <type_traits>

#include "../intrinsics.h"
#include "../warp.h"

// Shifts of device code, which cuda_translate writes as a << ptx_shift << n: by the width of the number or more they give 0
// or, of a negative number to the right, -1, as PTX's shl and shr do. Numbers of n from 2^32 on wrap, as there.
namespace simt::program {
template <class T> struct Shifted { T value; };
template <class N> struct ShiftBy { N count; };
inline constexpr struct Shift {} ptx_shift;
template <class T> constexpr bool is_number = std::is_integral_v<T> || (std::is_enum_v<T> && std::is_convertible_v<T, int>);
template <class T> constexpr Shifted<T> operator<<(T value, Shift) { return {value}; }
template <class T> constexpr Shifted<T> operator>>(T value, Shift) { return {value}; }
template <class T, class N> constexpr decltype(auto) operator<<(Shifted<T> left, N count) {
  if constexpr (is_number<T> && is_number<N>) {
    using R = decltype(+left.value);
    return unsigned(count) < 8 * sizeof(R) ? R(std::make_unsigned_t<R>(left.value) << unsigned(count)) : R(0);
  } else {
    return left.value << count;
  }
}
template <class T, class N> constexpr decltype(auto) operator>>(Shifted<T> left, N count) {
  if constexpr (is_number<T> && is_number<N>) {
    using R = decltype(+left.value);
    return R(R(left.value) >> (unsigned(count) < 8 * sizeof(R) ? unsigned(count) : 8 * sizeof(R) - 1)
             >> (unsigned(count) < 8 * sizeof(R) ? 0 : 1));
  } else {
    return left.value >> count;
  }
}
template <class N> constexpr ShiftBy<N> operator<<=(Shift, N count) { return {count}; }
template <class N> constexpr ShiftBy<N> operator>>=(Shift, N count) { return {count}; }
template <class T, class N> constexpr T& operator<<=(T& left, ShiftBy<N> by) {
  if constexpr (is_number<T>) left = static_cast<T>(left << ptx_shift << by.count);
  else left <<= by.count;
  return left;
}
template <class T, class N> constexpr T& operator>>=(T& left, ShiftBy<N> by) {
  if constexpr (is_number<T>) left = static_cast<T>(left >> ptx_shift >> by.count);
  else left >>= by.count;
  return left;
}
}  // namespace simt::program

// min and max of two different types, as CUDA's overloads have them.
#define SIMT_MIXED(name, condition)                                                                                \
  template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B> &&       \
                                                       !std::is_same_v<A, B>>>                                     \
  inline std::common_type_t<A, B> name(A a, B b) {                                                                 \
    using T = std::common_type_t<A, B>;                                                                            \
    return condition ? T(b) : T(a);                                                                                \
  }
SIMT_MIXED(min, T(b) < T(a))
SIMT_MIXED(max, T(a) < T(b))
#undef SIMT_MIXED

template <class T> T umin(T a, T b) { return b < a ? b : a; }  // templates, so that a program's own come first
template <class T> T umax(T a, T b) { return a < b ? b : a; }
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline unsigned __sad(int a, int b, unsigned c) { return c + unsigned(a < b ? b - a : a - b); }
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a < b ? b - a : a - b); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(unsigned(x))) << 32 | __brev(unsigned(x >> 32));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}
inline size_t __cvta_generic_to_shared(const void* pointer, SIMT_HERE) { return simt::shared_address(pointer, where); }
inline void* __cvta_shared_to_generic(size_t address) { return simt::from_shared_address(unsigned(address)); }
inline size_t __cvta_generic_to_global(const void* pointer) { return reinterpret_cast<size_t>(pointer); }
inline bool __isShared(const void* pointer) { return simt::is_shared_memory(pointer); }
inline bool __isGlobal(const void* pointer) { return !simt::is_shared_memory(pointer); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
  return c;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += int(int8_t(a >> i)) * int8_t(b >> i);
  return c;
}
inline long long __mul64hi(long long a, long long b) { return (long long)(__int128{a} * b >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128){a} * b >> 64);
}

// Conversions with their rounding; what does not fit saturates, NaN is 0.
#define SIMT_CONVERT(from, F, to, T)                                                             \
  inline T __##from##2##to##_rd(F x) { return simt::to_integer<T>(std::floor(x)); }               \
  inline T __##from##2##to##_ru(F x) { return simt::to_integer<T>(std::ceil(x)); }
SIMT_CONVERT(float, float, int, int)
SIMT_CONVERT(double, double, int, int)
SIMT_CONVERT(float, float, uint, unsigned)
SIMT_CONVERT(double, double, uint, unsigned)
#undef SIMT_CONVERT
inline unsigned __float2uint_rn(float x) { return simt::to_integer<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return simt::to_integer<unsigned>(std::trunc(x)); }
inline int __double2int_rn(double x) { return simt::to_integer<int>(std::nearbyint(x)); }
inline int __double2int_rz(double x) { return simt::to_integer<int>(std::trunc(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline double __int2double_rn(int x) { return x; }
inline float __double2float_rn(double x) { return float(x); }
inline double __longlong_as_double(long long x) {
  double value;
  std::memcpy(&value, &x, 8);
  return value;
}
inline long long __double_as_longlong(double x) {
  long long value;
  std::memcpy(&value, &x, 8);
  return value;
}

inline float __fsub_rn(float x, float y) { return simt::unfused(x) - simt::unfused(y); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float fdividef(float x, float y) { return x / y; }
inline double __dadd_rn(double x, double y) { return simt::unfused(x) + simt::unfused(y); }
inline double __dmul_rn(double x, double y) { return simt::unfused(x * y); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __tanf(float x) { return std::tan(x); }
inline void __sincosf(float x, float* sine, float* cosine) { *sine = std::sin(x), *cosine = std::cos(x); }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
namespace simt::program {
// sin(pi x) for quarter = 0, cos(pi x) for quarter = 1: what is left of x beside half turns is exact, and at most 1/4.
inline double of_half_turns(double x, int quarter) {
  if (!std::isfinite(x)) return NAN;
  const double turn = std::fmod(x, 2), near = std::nearbyint(2 * turn);
  const double angle = M_PI * (turn - near / 2);
  const int quadrant = (int(near) + quarter) & 3;
  const double value = quadrant % 2 ? std::cos(angle) : std::sin(angle);
  const double result = quadrant >= 2 ? -value : value;
  return result == 0 ? (quarter ? 0.0 : std::copysign(0.0, x)) : result;
}
// 1/sqrt(2) as two numbers, so that the argument's own rounding, which erfc magnifies, can be made good.
inline double upper_tail(double x) {
  const double near = x * M_SQRT1_2, lacks = std::fma(x, M_SQRT1_2, -near) + x * -4.833646656726457e-17;
  const double change = std::isfinite(x) ? M_2_SQRTPI * std::exp(-near * near) * lacks : 0;
  return 0.5 * (std::erfc(near) - change);
}
}  // namespace simt::program
inline double sinpi(double x) { return simt::program::of_half_turns(x, 0); }
inline double cospi(double x) { return simt::program::of_half_turns(x, 1); }
inline float sinpif(float x) { return float(sinpi(x)); }
inline float cospif(float x) { return float(cospi(x)); }
inline double normcdf(double x) { return simt::program::upper_tail(-x); }
inline float normcdff(float x) { return float(normcdf(x)); }

template <class T> SIMT_INLINE T __ldca(const T* address) { return *address; }
template <class T> SIMT_INLINE T __ldlu(const T* address) { return *address; }
template <class T> SIMT_INLINE T __ldcv(const T* address) { return *address; }
template <class T> SIMT_INLINE void __stwb(T* address, T value) { *address = value; }
template <class T> SIMT_INLINE void __stwt(T* address, T value) { *address = value; }
inline void __threadfence_system() { simt::fence(); }
inline long long clock64() {  // nanoseconds of this computer, no GPU's cycles; it fits the clock rate of device.h
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}
#define SIMT_SCOPED(name)                                                                        \
  template <class T, class U> T name##_block(T* address, U value) { return name(address, value); } \
  template <class T, class U> T name##_system(T* address, U value) { return name(address, value); }
SIMT_SCOPED(atomicAdd)
SIMT_SCOPED(atomicSub)
SIMT_SCOPED(atomicExch)
SIMT_SCOPED(atomicMin)
SIMT_SCOPED(atomicMax)
SIMT_SCOPED(atomicInc)
SIMT_SCOPED(atomicDec)
SIMT_SCOPED(atomicAnd)
SIMT_SCOPED(atomicOr)
SIMT_SCOPED(atomicXor)
#undef SIMT_SCOPED
template <class T, class U, class V>
T atomicCAS_system(T* address, U expected, V wanted) { return atomicCAS(address, expected, wanted); }

// Bits of the narrow types.
inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 value;
  value.bits = bits;
  return value;
}
inline __half2 __float2half2_rn(float x) { return {__half(x), __half(x)}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {__nv_bfloat16(x), __nv_bfloat16(x)}; }
inline __half2 __float22half2_rn(float2 x) { return {__half(x.x), __half(x.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return {__nv_bfloat16(x.x), __nv_bfloat16(x.y)}; }
