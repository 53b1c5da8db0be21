// With one row of x each code of W is used once. Four rows of W pass at a time, so that a line of x is loaded once for
// all of them and their sums are added up together. Lines of W are asked for in the order in which they lie in memory,
// far ahead and into the second cache, which waits for more of them at a time than the first.

#include "nf4_row.h"

#include <algorithm>
#include <cstring>

#include "lanes.h"
#include "nf4_absmax.h"
#include "nf4_matvec.h"
#include "vectors.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

using kernels::NF4;

bool nf4_has_row(int64_t M) { return M == 1 && vectors_have_vnni(); }

void nf4_row_lay_out(NF4Int8Rows& rows) {
  const int64_t pieces = rows.columns / kNF4Piece;
  rows.lines.assign((pieces + 1) / 2, Int8Line{});
  for (int64_t p = 0; p < pieces; ++p) {
    Int8Line& line = rows.lines[p / 2];
    const int64_t lane = p % 2 * 8;
    for (int64_t v = 0; v < 2; ++v) std::copy_n(&rows.codes[p * kNF4Piece + 32 * v], 32, line.codes[v] + 4 * lane);
    line.taken[0][lane] = rows.offsets[p];
    std::fill_n(line.scale[0] + lane, 8, rows.scales[p]);
  }
}

#if MINILLAMA_X86
constexpr int64_t kAtOnce = 4;    // rows of W
constexpr int64_t kGroup = 16;    // rows whose absmax is decoded beforehand
constexpr int64_t kAhead = 8192;  // bytes from what is read to what is fetched

namespace {
// Rows of W, each of `pieces` pieces.
struct Rows {
  const uint8_t* codes;
  const float* absmax;  // (rows, pieces), and one number more
  int64_t pieces;
};
}  // namespace

// 8 numbers of a, the sums of its halves, and 8 of b
AVX512 static INLINE __m512 sums_of_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}

// The sums of four vectors' lanes, each in the order of _mm512_reduce_add_ps.
AVX512 static INLINE __m128 sums_of(const __m512* v) {
  const __m512 a = sums_of_halves(v[0], v[1]), b = sums_of_halves(v[2], v[3]);
  const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4E));
  const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xB1));
  return _mm512_castps512_ps128(
      _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), one));
}

// sums[r] += two pieces of row r from piece p on, or what is there of them, times a line of x. The levels are unsigned.
template <int R>
AVX512_VNNI static INLINE void add_line(const Rows& w, int64_t p, __mmask16 there, const Int8Line& x, __m512i levels,
                                        __m512* sums) {
  const __m512i half = _mm512_set1_epi8(15), halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i x_low = _mm512_load_si512(x.codes[0]), x_high = _mm512_load_si512(x.codes[1]);
  const __m512i taken = _mm512_load_si512(x.taken[0]);
  const __m512 x_scale = _mm512_load_ps(x.scale[0]);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    __m512i bytes = _mm512_maskz_loadu_epi32(there, w.codes + 32 * (r * w.pieces + p));
    asm("" : "+v"(bytes));  // in a register: its two halves would each load it
    _mm_prefetch(reinterpret_cast<const char*>(w.codes + 32 * (R * p + 2 * r) + kAhead), _MM_HINT_T1);
    const __m512i low = _mm512_shuffle_epi8(levels, _mm512_and_si512(bytes, half));
    const __m512i high = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half));
    int64_t both;
    std::memcpy(&both, w.absmax + r * w.pieces + p, sizeof both);
    const __m512 scale = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi32(there, halves, _mm512_set1_epi64(both)));
    const __m512i dot = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(taken, low, x_low), high, x_high);
    sums[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale), x_scale, sums[r]);
  }
}

template <int R>
AVX512_VNNI static INLINE __m128 row_sums(const Rows& w, const Int8Line* x) {
  const __m128i signed_levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kNF4Int8Levels));
  const __m512i levels = _mm512_add_epi8(_mm512_broadcast_i32x4(signed_levels), _mm512_set1_epi8(kNF4Int8Step));
  __m512 sums[kAtOnce] = {};
  int64_t p = 0;
  for (; p + 2 <= w.pieces; p += 2, ++x) add_line<R>(w, p, 0xFFFF, *x, levels, sums);
  if (p < w.pieces) add_line<R>(w, p, 0xFF, *x, levels, sums);
  return _mm_div_ps(sums_of(sums), _mm_set1_ps(kNF4Int8Step));
}

AVX512_VNNI static void multiply(Rows w, const Int8Line* x, int64_t rows, float* y) {
  const int64_t row_bytes = 32 * w.pieces;
  int64_t r = 0;
  for (; r + kAtOnce <= rows; r += kAtOnce)
    _mm_storeu_ps(y + r, row_sums<kAtOnce>({w.codes + r * row_bytes, w.absmax + r * w.pieces, w.pieces}, x));
  for (; r < rows; ++r)
    y[r] = _mm_cvtss_f32(row_sums<1>({w.codes + r * row_bytes, w.absmax + r * w.pieces, w.pieces}, x));
}

void nf4_row(const NF4& w, const NF4Int8Rows& x, int64_t begin, int64_t end, float* y) {
  const int64_t pieces = w.columns / kNF4Piece;
  std::vector<float> absmax(kGroup * pieces + 1);
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t rows = std::min(kGroup, end - first);
    nf4_absmax_of_rows(w, first, rows, kNF4Piece, absmax.data());
    multiply({w.codes + first * (w.columns / 2), absmax.data(), pieces}, x.lines.data(), rows, y + first - begin);
  }
}
#else
void nf4_row(const NF4&, const NF4Int8Rows&, int64_t, int64_t, float*) {}
#endif

}  // namespace minillama
