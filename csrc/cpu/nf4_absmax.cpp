// absmax = map[code] * scale of its group + offset, rounded after the product and after the sum.

#include "nf4_absmax.h"

#include <algorithm>

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
// 16 of the map's values: in each pair of registers (32 values) by the lowest five bits of a code; the upper three say
// which pair it was. Faster than sixteen loads from the table.
AVX512 static INLINE __m512 look_up(__m512i codes) {
  __m512 found[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    found[i] = _mm512_permutex2var_ps(_mm512_loadu_ps(kDynamicMap + 32 * i), codes,
                                      _mm512_loadu_ps(kDynamicMap + 32 * i + 16));
#pragma GCC unroll 3
  for (int half = 4, bit = 128; half; half /= 2, bit /= 2) {
    const __mmask16 upper = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) found[i] = _mm512_mask_mov_ps(found[i], upper, found[i + half]);
  }
  return found[0];
}

AVX512 static void absmax_avx512(const NF4& w, int64_t begin, int64_t end, float* absmax) {
  const __m512 offset = _mm512_set1_ps(*w.absmax_offset);
  for (int64_t i = begin; i < end;) {
    const __m512 scale = _mm512_set1_ps(w.absmax_scale[i / kGroup]);
    const int64_t stop = std::min(end, (i / kGroup + 1) * kGroup);
    for (int64_t taken; i < stop; i += taken) {
      taken = std::min<int64_t>(16, stop - i);
      const __mmask16 there = static_cast<__mmask16>((1 << taken) - 1);
      const __m512 values = look_up(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, w.absmax_codes + i)));
      // Said with a rounding mode, a product is not fused with the sum.
      const __m512 product = _mm512_mul_round_ps(values, scale, _MM_FROUND_CUR_DIRECTION);
      _mm512_mask_storeu_ps(absmax + i - begin, there, _mm512_add_ps(product, offset));
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
