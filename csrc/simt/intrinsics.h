// Arithmetic that CUDA has names for, loads with hints, and atomics. Fast approximations are exact here: a test of a
// kernel that uses them needs a tolerance.
#pragma once

#include <algorithm>
#include <limits>

#include "narrow_types.h"

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> 4 * i & 0xf, byte = unsigned(bytes >> 8 * (choice & 7)) & 0xff;
    result |= (choice & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;  // bit 3: the byte's sign, eight times
  }
  return result;
}
inline float __int_as_float(int x) { return simt::float_of(uint32_t(x)); }
inline float __uint_as_float(unsigned x) { return simt::float_of(x); }
inline int __float_as_int(float x) { return int(simt::bits_of(x)); }
inline unsigned __float_as_uint(float x) { return simt::bits_of(x); }
namespace simt {
// A rounded number as an integer; what does not fit saturates, NaN is 0.
template <class T, class F>
constexpr T to_integer(F rounded) {
  if (rounded != rounded) return 0;
  if (rounded <= F(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (rounded >= F(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return T(rounded);
}
}  // namespace simt
inline int __float2int_rn(float x) { return simt::to_integer<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return simt::to_integer<int>(x); }
inline int __mulhi(int a, int b) { return int(int64_t{a} * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t{a} * b >> 32); }

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return simt::unfused(x) + simt::unfused(y); }
inline float __fmul_rn(float x, float y) { return simt::unfused(x * y); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1.0f : 0.0f; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

#define SIMT_MIN_MAX(T)                              \
  constexpr T min(T a, T b) { return b < a ? b : a; }   \
  constexpr T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

template <class T> SIMT_INLINE T __ldg(const T* address) { return *address; }
template <class T> SIMT_INLINE T __ldcs(const T* address) { return *address; }
template <class T> SIMT_INLINE T __ldcg(const T* address) { return *address; }
template <class T> SIMT_INLINE void __stcs(T* address, T value) { *address = value; }
template <class T> SIMT_INLINE void __stcg(T* address, T value) { *address = value; }
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }
inline void __nanosleep(unsigned, simt::Where where = simt::Where::here()) { simt::atomic_point(where); }
[[noreturn]] inline void __trap(simt::Where where = simt::Where::here()) { simt::fail("__trap()", where); }

// ---- atomics: nothing runs in between, and a thread that does many in a row lets the others have a turn

namespace simt {
template <class T>
SIMT_UNSEEN T atomic_read(const T* address) { return *address; }
template <class T>
SIMT_UNSEEN void atomic_write(T* address, T value) { *address = value; }
}  // namespace simt

#define SIMT_ATOMIC(name, result)                                                              \
  template <class T, class U>                                                                  \
  T name(T* address, U operand, simt::Where where = simt::Where::here()) {                     \
    simt::atomic_access(address, sizeof(T), where);                                            \
    const T old = simt::atomic_read(address), value = T(operand);                              \
    simt::atomic_write(address, T(result));                                                    \
    return old;                                                                                \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicSub, old - value)
SIMT_ATOMIC(atomicExch, value)
SIMT_ATOMIC(atomicMin, value < old ? value : old)
SIMT_ATOMIC(atomicMax, old < value ? value : old)
SIMT_ATOMIC(atomicAnd, old & value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicXor, old ^ value)
SIMT_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
SIMT_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef SIMT_ATOMIC

template <class T, class U, class V>
T atomicCAS(T* address, U expected, V wanted, simt::Where where = simt::Where::here()) {
  simt::atomic_access(address, sizeof(T), where);
  const T old = simt::atomic_read(address);
  if (old == T(expected)) simt::atomic_write(address, T(wanted));
  return old;
}
