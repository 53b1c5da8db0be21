// absmax = map[code] * scale of its group + offset, rounded after the product and after the sum.

#include "nf4_absmax.h"

#include <algorithm>
#include <cstring>

#include "../nf4_table.h"
#include "lanes.h"
#include "vectors.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

using kernels::NF4;

constexpr int64_t kGroup = 256;  // absmax codes that share a scale
static const float kDynamicMap[256] = {MINILLAMA_DYNAMIC_MAP};

// Two loops: a product and a sum in one expression may be fused, and then have other bits than the reference.
static void absmax_plain(const NF4& w, int64_t begin, int64_t end, float* absmax) {
  for (int64_t i = begin; i < end; ++i) absmax[i - begin] = kDynamicMap[w.absmax_codes[i]] * w.absmax_scale[i / kGroup];
  for (int64_t i = 0; i < end - begin; ++i) absmax[i] += *w.absmax_offset;
}

#if MINILLAMA_X86
// Halves of 32 of the map's values: in each pair of registers (64 halves) by the lowest six bits of a code; the upper two
// say which pair it was. Faster than loads from the table, and 32 at a time than whole values 16 at a time.
AVX512 static INLINE __m512i look_up(const uint16_t* halves, __m512i codes, __mmask32 bit6, __mmask32 bit7) {
  __m512i found[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    found[i] = _mm512_permutex2var_epi16(_mm512_loadu_si512(halves + 64 * i), codes, _mm512_loadu_si512(halves + 64 * i + 32));
  const __m512i low = _mm512_mask_mov_epi16(found[0], bit6, found[1]), high = _mm512_mask_mov_epi16(found[2], bit6, found[3]);
  return _mm512_mask_mov_epi16(low, bit7, high);
}

struct Halves {
  uint16_t lower[256], upper[256];
  Halves() {
    for (int i = 0; i < 256; ++i) {
      uint32_t bits;
      std::memcpy(&bits, &kDynamicMap[i], sizeof bits);
      lower[i] = static_cast<uint16_t>(bits);
      upper[i] = static_cast<uint16_t>(bits >> 16);
    }
  }
};

AVX512 static void absmax_avx512(const NF4& w, int64_t begin, int64_t end, float* absmax) {
  static const Halves map;
  const __m512 offset = _mm512_set1_ps(*w.absmax_offset);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // fours of codes, as unpacking leaves them in place
  for (int64_t i = begin; i < end;) {
    const __m512 scale = _mm512_set1_ps(w.absmax_scale[i / kGroup]);
    const int64_t stop = std::min(end, (i / kGroup + 1) * kGroup);
    for (int64_t taken; i < stop; i += taken) {
      taken = std::min<int64_t>(32, stop - i);
      const auto there = static_cast<__mmask32>((uint64_t{1} << taken) - 1);
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_maskz_loadu_epi8(there, w.absmax_codes + i), order);
      const __m512i codes = _mm512_cvtepu8_epi16(bytes);
      const __mmask32 bit6 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(64));
      const __mmask32 bit7 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(128));
      const __m512i lower = look_up(map.lower, codes, bit6, bit7), upper = look_up(map.upper, codes, bit6, bit7);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i values = half ? _mm512_unpackhi_epi16(lower, upper) : _mm512_unpacklo_epi16(lower, upper);
        // Said with a rounding mode, a product is not fused with the sum.
        const __m512 product = _mm512_mul_round_ps(_mm512_castsi512_ps(values), scale, _MM_FROUND_CUR_DIRECTION);
        _mm512_mask_storeu_ps(absmax + i - begin + 16 * half, static_cast<__mmask16>(there >> 16 * half),
                              _mm512_add_ps(product, offset));
      }
    }
  }
}
#endif

void nf4_absmax(const NF4& w, int64_t begin, int64_t end, float* absmax) {
  if (w.absmax) return void(std::copy(w.absmax + begin, w.absmax + end, absmax));
#if MINILLAMA_X86
  if (vectors().kind == Kind::avx512) return absmax_avx512(w, begin, end, absmax);
#endif
  absmax_plain(w, begin, end, absmax);
}

void nf4_absmax_of_rows(const NF4& w, int64_t first, int64_t rows, int64_t piece, float* absmax) {
  const int64_t pieces = w.columns / piece, in_block = w.block_size / piece;
  const int64_t begin = first * pieces, end = begin + rows * pieces;
  if (in_block == 1) return nf4_absmax(w, begin, end, absmax);
  for (int64_t p = begin, next; p < end; p = next) {
    next = std::min(end, (p / in_block + 1) * in_block);
    nf4_absmax(w, p / in_block, p / in_block + 1, absmax + p - begin);
    std::fill(absmax + p - begin, absmax + next - begin, absmax[p - begin]);
  }
}

}  // namespace minillama
