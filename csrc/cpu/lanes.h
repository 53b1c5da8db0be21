// Vectors of 4, 8 or 16 fp32 numbers as the compiler knows them, and the attributes by which one text is compiled for
// several kinds of processors: a function marked AVX512 or AVX2 calls templates marked INLINE, which take over its kind.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

#if defined(__GNUC__) && defined(__x86_64__)
#define MINILLAMA_X86 1
#define AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx2,fma")))
#define AVX512_VNNI __attribute__((target("avx512f,avx512vl,avx512bw,avx512vnni,avx2,fma")))
#define AVX2 __attribute__((target("avx2,fma")))
#endif
#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // how vectors are passed does not matter: every function here is inlined
#endif

namespace minillama {

#if defined(__GNUC__)
constexpr int kPlainLanes = 4;  // any processor
template <int lanes>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * lanes)));
  typedef float anywhere __attribute__((vector_size(4 * lanes), aligned(4), may_alias));  // as it lies in memory
  typedef uint32_t bits __attribute__((vector_size(4 * lanes)));
  typedef uint16_t half_bits __attribute__((vector_size(2 * lanes), aligned(2), may_alias));
};

template <int lanes>
static INLINE typename Lanes<lanes>::type load(const float* from) {
  return *reinterpret_cast<const typename Lanes<lanes>::anywhere*>(from);
}

// bf16 is the upper half of fp32.
template <int lanes>
static INLINE typename Lanes<lanes>::type load(const c10::BFloat16* from) {
  using Bits = typename Lanes<lanes>::bits;
  const auto half = *reinterpret_cast<const typename Lanes<lanes>::half_bits*>(from);
  return (typename Lanes<lanes>::type)(__builtin_convertvector(half, Bits) << 16);
}

// fp16 has 5 bits of exponent around 15 where fp32 has 8 around 127: moved to their place they are 2^112 times too small,
// which one exact product puts right, subnormal numbers as well. Infinity and NaN keep all their exponent's bits.
template <int lanes>
static INLINE typename Lanes<lanes>::type load(const c10::Half* from) {
  using Vector = typename Lanes<lanes>::type;
  using Bits = typename Lanes<lanes>::bits;
  const Bits half = __builtin_convertvector(*reinterpret_cast<const typename Lanes<lanes>::half_bits*>(from), Bits);
  const Bits size = half & 0x7fff, beyond = (Bits)(size >= 0x7c00) & 0x7f800000u;
  const Vector value = (Vector)(size << 13) * 0x1p112f;
  return (Vector)((Bits)value | beyond | (half & 0x8000) << 16);
}

template <int lanes>
static INLINE void store(float* to, typename Lanes<lanes>::type vector) {
  *reinterpret_cast<typename Lanes<lanes>::anywhere*>(to) = vector;
}

// The sum of all lanes: halves are added until one number is left.
template <int lanes>
static INLINE float sum_of(typename Lanes<lanes>::type vector) {
  float numbers[lanes];
  store<lanes>(numbers, vector);
#pragma GCC unroll 4
  for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) numbers[lane] += numbers[lane + half];
  return numbers[0];
}
#else
constexpr int kPlainLanes = 1;  // other compilers: one number at a time
template <int lanes>
struct Lanes {
  typedef float type;
};
template <int lanes, typename Stored>
static INLINE float load(const Stored* from) {
  return static_cast<float>(*from);
}
template <int lanes>
static INLINE void store(float* to, float number) {
  *to = number;
}
template <int lanes>
static INLINE float sum_of(float number) {
  return number;
}
#endif

}  // namespace minillama
