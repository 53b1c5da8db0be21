// One text for all kinds of processors where the compiler has vectors of any length; codes are looked up as each kind
// can: 16 levels are one register of AVX-512, two of AVX2.

#include "vectors.h"

#include <cstdlib>
#include <cstring>

#include "../nf4_table.h"
#include "lanes.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

static const float kLevels[16] = {MINILLAMA_NF4_LEVELS};

// ---- sums of products

constexpr int64_t kChain = 32;  // products that are summed one after another; then begin new sums, for small rounding errors

#if defined(__GNUC__)
// All sums stay in registers: kRows * vectors of them, beside the vectors of one row of b and one number of a.
template <int lanes, int vectors>
static INLINE void accumulate_vectors(const float* a, int64_t a_stride, const float* b, int64_t depth, float* sums) {
  using Vector = typename Lanes<lanes>::type;
  Vector sum[kRows][vectors] = {}, of_b[vectors];
  for (int64_t k = 0; k < depth; ++k, b += kPanel) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) of_b[v] = load<lanes>(b + v * lanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const float of_a = a[r * a_stride + k];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += of_a * of_b[v];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* to = sums + r * kPanel + v * lanes;
      store<lanes>(to, load<lanes>(to) + sum[r][v]);
    }
  }
}

// As many vectors at once as the registers hold, then what is left; kChain products at a time.
template <int lanes, int most>
static INLINE void accumulate_columns(const float* a, int64_t a_stride, const float* b, int64_t depth, int64_t columns,
                                      float* sums) {
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t chain = depth - k < kChain ? depth - k : kChain;
    int64_t c = 0;
    for (; c + (most - 1) * lanes < columns; c += most * lanes)
      accumulate_vectors<lanes, most>(a + k, a_stride, b + k * kPanel + c, chain, sums + c);
    for (; c < columns; c += lanes)
      accumulate_vectors<lanes, 1>(a + k, a_stride, b + k * kPanel + c, chain, sums + c);
  }
}

template <int lanes>
static INLINE float dot_vectors(const float* a, const float* b, int64_t size) {
  using Vector = typename Lanes<lanes>::type;
  Vector sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= size; i += 4 * lanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] += load<lanes>(a + i + v * lanes) * load<lanes>(b + i + v * lanes);
  }
  const Vector all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0;
  for (int lane = 0; lane < lanes; ++lane) total += all[lane];
  for (; i < size; ++i) total += a[i] * b[i];
  return total;
}
#else
template <int lanes, int most>
static void accumulate_columns(const float* a, int64_t a_stride, const float* b, int64_t depth, int64_t columns,
                               float* sums) {
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t c = 0; c < columns; ++c) sums[r * kPanel + c] += a[r * a_stride + k] * b[k * kPanel + c];
}
template <int lanes>
static float dot_vectors(const float* a, const float* b, int64_t size) {
  float total = 0;
  for (int64_t i = 0; i < size; ++i) total += a[i] * b[i];
  return total;
}
#endif

// ---- levels of codes; the first of two weights lies in the high nibble

static INLINE void decode_pairs(const uint8_t* codes, int64_t pairs, float absmax, float* out) {
  for (int64_t i = 0; i < pairs; ++i) {
    out[2 * i] = kLevels[codes[i] >> 4] * absmax;
    out[2 * i + 1] = kLevels[codes[i] & 15] * absmax;
  }
}

static void decode_plain(const uint8_t* codes, const float* absmax, float* out, int64_t pairs, int64_t count,
                         const RunStrides& stride) {
  for (int64_t run = 0; run < count; ++run, codes += stride.codes, absmax += stride.absmax, out += stride.out)
    decode_pairs(codes, pairs, *absmax, out);
}

#if MINILLAMA_X86
AVX512 static void decode_avx512(const uint8_t* codes, const float* absmax, float* out, int64_t pairs, int64_t count,
                                 const RunStrides& stride) {
  const __m512 levels = _mm512_loadu_ps(kLevels);
  const __m512i low_half = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high_half = _mm512_add_epi32(low_half, _mm512_set1_epi32(8));
  for (int64_t run = 0; run < count; ++run, codes += stride.codes, absmax += stride.absmax, out += stride.out) {
    const __m512 scale = _mm512_set1_ps(*absmax);
    int64_t i = 0;
    for (; i + 16 <= pairs; i += 16) {
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
      const __m512 second = _mm512_permutexvar_ps(bytes, levels);  // by the lowest four bits
      const __m512 first = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), levels);
      _mm512_storeu_ps(out + 2 * i, _mm512_mul_ps(_mm512_permutex2var_ps(first, low_half, second), scale));
      _mm512_storeu_ps(out + 2 * i + 16, _mm512_mul_ps(_mm512_permutex2var_ps(first, high_half, second), scale));
    }
    decode_pairs(codes + i, pairs - i, *absmax, out + 2 * i);
  }
}

// Eight levels by the lowest four bits of each number: from the lower or the upper half of the table, as bit 3 says.
AVX2 static INLINE __m256 look_up(__m256i numbers, __m256 lower, __m256 upper) {
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(numbers, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, numbers), _mm256_permutevar8x32_ps(upper, numbers), bit3);
}

AVX2 static void decode_avx2(const uint8_t* codes, const float* absmax, float* out, int64_t pairs, int64_t count,
                             const RunStrides& stride) {
  const __m256 lower = _mm256_loadu_ps(kLevels), upper = _mm256_loadu_ps(kLevels + 8);
  for (int64_t run = 0; run < count; ++run, codes += stride.codes, absmax += stride.absmax, out += stride.out) {
    const __m256 scale = _mm256_set1_ps(*absmax);
    int64_t i = 0;
    for (; i + 8 <= pairs; i += 8) {
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
      const __m256 second = _mm256_mul_ps(look_up(bytes, lower, upper), scale);
      const __m256 first = _mm256_mul_ps(look_up(_mm256_srli_epi32(bytes, 4), lower, upper), scale);
      const __m256 a = _mm256_unpacklo_ps(first, second), b = _mm256_unpackhi_ps(first, second);
      _mm256_storeu_ps(out + 2 * i, _mm256_permute2f128_ps(a, b, 0x20));
      _mm256_storeu_ps(out + 2 * i + 8, _mm256_permute2f128_ps(a, b, 0x31));
    }
    decode_pairs(codes + i, pairs - i, *absmax, out + 2 * i);
  }
}
#endif

// ---- the kinds: name, attributes for the compiler, numbers in a vector, vectors in a row of sums

#define KIND(kind, attributes, lanes, most)                                                                        \
  attributes static void accumulate_##kind(const float* a, int64_t a_stride, const float* b, int64_t depth,       \
                                           int64_t columns, float* sums) {                                         \
    accumulate_columns<lanes, most>(a, a_stride, b, depth, columns, sums);                                         \
  }                                                                                                                \
  attributes static float dot_##kind(const float* a, const float* b, int64_t size) {                               \
    return dot_vectors<lanes>(a, b, size);                                                                         \
  }                                                                                                                \
  static const Vectors kind{Kind::kind, decode_##kind, accumulate_##kind, dot_##kind};

KIND(plain, , 4, 2)
#if MINILLAMA_X86
KIND(avx2, AVX2, 8, 2)
KIND(avx512, AVX512, 16, 4)
#endif

// "best" is what the processor has, up to what PyTorch is allowed to use of it: one variable caps both.
static const Vectors* find(const std::string& asked) {
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  const bool capped = asked == "best" && cap && *cap && std::strcmp(cap, "avx512") != 0;
  const std::string name = !capped ? asked : std::strcmp(cap, "avx2") == 0 ? "avx2" : "plain";
#if MINILLAMA_X86
  const bool best = name == "best";
  if ((best || name == "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return &avx512;
  if ((best || name == "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#endif
  return name == "plain" || asked == "best" ? &plain : nullptr;
}

static const Vectors* in_use = find("best");

const Vectors& vectors() { return *in_use; }

bool vectors_have_vnni() {
#if MINILLAMA_X86
  static const bool in_processor = __builtin_cpu_supports("avx512vnni");
  return in_processor && in_use->kind == Kind::avx512;
#else
  return false;
#endif
}

bool choose_vectors(const std::string& name) {
  const Vectors* found = find(name);
  if (found) in_use = found;
  return found != nullptr;
}

}  // namespace minillama
