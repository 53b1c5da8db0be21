// Dot products of int8 codes: a product of two codes needs 15 bits, and CPUs sum four or two of them at once.
//
//   AVX-512 VNNI   vpdpbusd: four products, of an unsigned byte and a signed one, added to an int32. w + 128 is unsigned,
//                  and 128 times the sum of x is taken away at the end.
//   AVX2           vpmaddubsw: two such products added to an int16, where |w| is unsigned and x takes w's sign: at most
//                  2 * 128 * 127, which fits. (w + 128 would not fit.) AVX-512 without VNNI uses this too.
//   plain          the definition
//
// int32 sums may overflow and come back: what counts is that the whole sum fits, as it does for kStrip columns.

#include "int8_dots.h"

#include <algorithm>

#include "lanes.h"
#include "vectors.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

constexpr int64_t kStrip = int64_t{1} << 16;  // 2^16 * 128 * 127 < 2^30
constexpr int64_t kAhead = 4096;             // bytes from what is read to what is fetched
constexpr int kRowsOfW = 4, kRowsOfX = 4;     // whose sums fit the registers

namespace {
// Some rows of w and x over at most kStrip columns; rows are w_row and x_row codes apart.
struct Codes {
  const int8_t *w, *x;
  int64_t w_row, x_row, columns;
};
using Dots = void (*)(const Codes&, int32_t* sums);  // (R, M) sums
}  // namespace

template <int R, int M>
static void dots_plain(const Codes& c, int32_t* sums) {
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
      int32_t sum = 0;
      for (int64_t k = 0; k < c.columns; ++k) sum += c.w[r * c.w_row + k] * c.x[m * c.x_row + k];
      sums[r * M + m] = sum;
    }
}

#if MINILLAMA_X86
template <int R, int M>
AVX512_VNNI static void dots_vnni(const Codes& c, int32_t* sums) {
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i dots[R][M], sum_of_x[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    sum_of_x[m] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) dots[r][m] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < c.columns; k += 64) {
    const __mmask64 there = c.columns - k >= 64 ? ~0ull : (1ull << (c.columns - k)) - 1;  // the others are read as 0
    __m512i x[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      x[m] = _mm512_maskz_loadu_epi8(there, c.x + m * c.x_row + k);
      sum_of_x[m] = _mm512_dpbusd_epi32(sum_of_x[m], offset, x[m]);  // 128 x: as an unsigned byte, -128 is 128
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int8_t* from = c.w + r * c.w_row + k;
      const __m512i w = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, from), offset);
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) dots[r][m] = _mm512_dpbusd_epi32(dots[r][m], w, x[m]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r * M + m] = _mm512_reduce_add_epi32(_mm512_sub_epi32(dots[r][m], sum_of_x[m]));
}

AVX2 static INLINE int32_t sum_of_lanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

template <int R, int M>
AVX2 static void dots_avx2(const Codes& c, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i dots[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) dots[r][m] = _mm256_setzero_si256();
  int64_t k = 0;
  for (; k + 32 <= c.columns; k += 32) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int8_t* from = c.w + r * c.w_row + k;
      const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), size = _mm256_abs_epi8(w);
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c.x + m * c.x_row + k));
        const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w));
        dots[r][m] = _mm256_add_epi32(dots[r][m], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  dots_plain<R, M>({c.w + k, c.x + k, c.w_row, c.x_row, c.columns - k}, sums);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r * M + m] += sum_of_lanes(dots[r][m]);
}
#endif

namespace {
struct Kinds {
  Dots several[kRowsOfX], one[kRowsOfX];  // rows of w: kRowsOfW or one; by the rows of x
};
}  // namespace
#define KIND(name) \
  {{name<4, 1>, name<4, 2>, name<4, 3>, name<4, 4>}, {name<1, 1>, name<1, 2>, name<1, 3>, name<1, 4>}}
static const Kinds kPlain = KIND(dots_plain);
#if MINILLAMA_X86
static const Kinds kVnni = KIND(dots_vnni), kAvx2 = KIND(dots_avx2);
#endif

static const Kinds& kinds() {
#if MINILLAMA_X86
  if (vectors_have_vnni()) return kVnni;
  if (vectors().kind != Kind::plain) return kAvx2;
#endif
  return kPlain;
}

void int8_dots(const int8_t* w, int64_t rows, const int8_t* x, int64_t M, int64_t columns, int64_t* sums) {
  const Kinds& kind = kinds();
  std::fill(sums, sums + rows * M, 0);
  for (int64_t k = 0; k < columns; k += kStrip)
    for (int64_t m = 0; m < M; m += kRowsOfX) {
      const int64_t of_x = std::min<int64_t>(kRowsOfX, M - m);
      for (int64_t r = 0, of_w; r < rows; r += of_w) {
        of_w = M > 1 && rows - r >= kRowsOfW ? kRowsOfW : 1;  // for one row of x memory is read in one piece
        int32_t found[kRowsOfW * kRowsOfX];
        (of_w > 1 ? kind.several : kind.one)[of_x - 1](
            {w + r * columns + k, x + m * columns + k, columns, columns, std::min(kStrip, columns - k)}, found);
        for (int64_t i = 0; i < of_w * of_x; ++i) sums[(r + i / of_x) * M + m + i % of_x] += found[i];
      }
    }
}

}  // namespace minillama
