// Codes of a GGUF file's blocks in vectors, and the scale of each four of them.
#pragma once

#include <cstring>

#include "gguf_rows.h"
#include "lanes.h"

#if MINILLAMA_X86
#include <immintrin.h>

namespace minillama {

AVX2 static INLINE __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

AVX2 static INLINE __m256i twice(const void* from) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

// ---- AVX-512: unsigned codes of 64 columns, and the scale of each four

template <Block block>
constexpr int kZero = block == Block::q8_0 ? 7 : block == Block::q4_0 ? 3 : 5;  // of 2: what unsigned codes are above

struct Codes {
  __m512i q;
  __m512 scale;
};

AVX512 static INLINE __m512 two_halves(const uint8_t* first, const uint8_t* second) {
  int16_t one, two;
  std::memcpy(&one, first, sizeof one);
  std::memcpy(&two, second, sizeof two);
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_set1_epi16(one)), _mm_set1_epi16(two), 1));
}

template <Block block>
AVX512 static INLINE Codes codes_at(const uint8_t* w, int64_t group) {
  const __m512i low = _mm512_set1_epi8(15), upper = _mm512_set1_epi8(48);
  if constexpr (block == Block::q8_0) {
    const uint8_t* from = w + group * 68;
    const __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(load(from + 2)), load(from + 36), 1);
    return {_mm512_xor_si512(q, _mm512_set1_epi8(-128)), two_halves(from, from + 34)};
  } else if constexpr (block == Block::q4_0) {
    const uint8_t* from = w + group * 36;
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(twice(from + 2)), twice(from + 20), 1);
    const __m512i q = _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
    return {_mm512_and_si512(q, low), two_halves(from, from + 18)};
  } else {  // 64 columns are a quarter of a block
    const uint8_t* from = w + group / 4 * 210;
    const int64_t half = group % 4 / 2, second = group % 2;
    const __m512i bytes = _mm512_loadu_si512(from + 64 * half);
    const __m512i q = _mm512_and_si512(second ? _mm512_srli_epi16(bytes, 4) : bytes, low);
    const __m512i more = _mm512_broadcast_i64x4(load(from + 128 + 32 * half));
    const __m512i moved = second ? _mm512_srlv_epi64(more, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2))
                                 : _mm512_sllv_epi64(more, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
    int32_t four;
    std::memcpy(&four, from + 192 + 4 * (group % 4), sizeof four);
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i scales = _mm512_permutexvar_epi32(each, _mm512_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
    const __m512 whole = _mm512_set1_ps(half_at(from + 208));
    return {_mm512_or_si512(q, _mm512_and_si512(moved, upper)), _mm512_mul_ps(_mm512_cvtepi32_ps(scales), whole)};
  }
}

// ---- AVX2: a part, signed for q8_0

struct PartCodes {
  __m256i q;
  __m256 scale;
};

template <Block block>
AVX2 static INLINE PartCodes part_at(const uint8_t* w, int64_t p) {
  const __m256i low = _mm256_set1_epi8(15);
  if constexpr (block == Block::q8_0) {
    return {load(w + 34 * p + 2), _mm256_set1_ps(half_at(w + 34 * p))};
  } else if constexpr (block == Block::q4_0) {
    const uint8_t* from = w + 18 * p;
    const __m256i both = twice(from + 2);
    const __m256i q = _mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4));
    return {_mm256_and_si256(q, low), _mm256_set1_ps(half_at(from))};
  } else {
    const uint8_t* from = w + p / 8 * 210;
    const int64_t half = p % 8 / 4, of_half = p % 4;
    const __m256i bytes = load(from + 64 * half + 32 * (of_half % 2)), more = load(from + 128 + 32 * half);
    const __m256i q = _mm256_and_si256(of_half < 2 ? bytes : _mm256_srli_epi16(bytes, 4), low);
    const __m256i two = _mm256_and_si256(_mm256_srl_epi16(more, _mm_cvtsi64_si128(2 * of_half)), _mm256_set1_epi8(3));
    const auto* scales = reinterpret_cast<const int8_t*>(from + 192) + 2 * (p % 8);
    const float whole = half_at(from + 208), first = whole * scales[0], second = whole * scales[1];
    return {_mm256_or_si256(q, _mm256_slli_epi16(two, 4)), _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first))};
  }
}

}  // namespace minillama
#endif
