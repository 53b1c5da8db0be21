// A piece is 64 columns of a row: 32 bytes of codes. Their low halves, the odd columns, and their high halves look up 64
// levels as bytes (vpshufb), which are multiplied with 64 codes of x by integer dot products, as in int8_dots.cpp.

#include "nf4_int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "int8_rows.h"
#include "int8_tiles.h"
#include "lanes.h"
#include "nf4_absmax.h"
#include "nf4_matvec.h"
#include "nf4_row.h"
#include "vectors.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

using kernels::NF4;

constexpr int64_t kGroup = 12;  // rows of W whose sums stay in the cache
constexpr int64_t kAhead = 4096;  // bytes from what is read to what is fetched
constexpr int kMost = 4;        // rows of x whose sums fit the registers
constexpr int kStep = kNF4Int8Step;
static const int8_t* const kLevels = kNF4Int8Levels;

namespace {
// Some rows of W times M rows of x; rows are `_row` numbers apart.
struct Strip {
  const uint8_t* codes;
  int64_t row_bytes;
  const float* absmax;  // one for each piece
  int64_t absmax_row;
  const int8_t* x;
  const float* scales;
  const int32_t* offsets;
  int64_t pieces;
};
using Loop = void (*)(const Strip&, float* sums);  // (rows, M)
}  // namespace

template <int R, int M>
static void strip_plain(const Strip& s, float* sums) {
  std::fill(sums, sums + R * M, 0.0f);
  for (int64_t p = 0; p < s.pieces; ++p)
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) {
        const uint8_t* codes = s.codes + r * s.row_bytes + 32 * p;
        const int8_t* x = s.x + (m * s.pieces + p) * 64;
        int32_t dot = 0;
        for (int j = 0; j < 32; ++j) dot += kLevels[codes[j] & 15] * x[j] + kLevels[codes[j] >> 4] * x[32 + j];
        const float scaled = static_cast<float>(dot) * s.absmax[r * s.absmax_row + p];
        sums[r * M + m] += scaled * s.scales[m * s.pieces + p];
      }
}

#if MINILLAMA_X86
// level + 112 is unsigned; 112 times the sum of x is taken away beforehand. A vector holds the codes of two pieces, whose
// dots are eight lanes each; where there is no second one, its lanes are left out.
template <int R, int M>
AVX512_VNNI static void strip_vnni(const Strip& s, float* sums) {
  const __m512i half = _mm512_set1_epi8(15), halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i levels = _mm512_add_epi8(
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kLevels))), _mm512_set1_epi8(kStep));
  const auto two = [](const void* from) {  // numbers of 4 bytes
    int64_t both;
    std::memcpy(&both, from, sizeof both);
    return both;
  };
  __m512 sum[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[r][m] = _mm512_setzero_ps();
  for (int64_t p = 0; p < s.pieces; p += 2) {
    const __mmask16 there = s.pieces - p > 1 ? 0xFFFF : 0xFF;
    __m512i low[R], high[R];
    __m512 absmax[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* from = s.codes + r * s.row_bytes + 32 * p;
      const __m512i bytes = _mm512_maskz_loadu_epi32(there, from);
      low[r] = _mm512_shuffle_epi8(levels, _mm512_and_si512(bytes, half));
      high[r] = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half));
      const __m512i of_w = _mm512_set1_epi64(two(s.absmax + r * s.absmax_row + p));
      absmax[r] = _mm512_castsi512_ps(_mm512_permutexvar_epi32(halves, of_w));
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const int64_t at = m * s.pieces + p;
      const int8_t* x = s.x + at * 64;
      const auto upper = static_cast<__mmask16>(there & 0xFF00);
      const __m512i x_low = _mm512_mask_loadu_epi32(_mm512_maskz_loadu_epi32(0xFF, x), upper, x + 32);
      const __m512i x_high = _mm512_mask_loadu_epi32(_mm512_maskz_loadu_epi32(0xFF, x + 32), upper, x + 64);
      const auto first = static_cast<__mmask16>(there & 0x0101);
      const __m512i offset = _mm512_maskz_permutexvar_epi32(first, halves, _mm512_set1_epi64(two(s.offsets + at)));
      const __m512 scale =
          _mm512_castsi512_ps(_mm512_permutexvar_epi32(halves, _mm512_set1_epi64(two(s.scales + at))));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i dot = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(offset, low[r], x_low), high[r], x_high);
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), absmax[r]);
        sum[r][m] = _mm512_mask3_fmadd_ps(scaled, scale, sum[r][m], there);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r * M + m] = _mm512_reduce_add_ps(sum[r][m]);
}

// |x| is unsigned, and the level takes its sign: two products are at most 2 * 112 * 127, which fits an int16.
AVX2 static INLINE __m256i dot_avx2(__m256i levels, __m256i codes, const int8_t* from) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i signed_level = _mm256_sign_epi8(_mm256_shuffle_epi8(levels, codes), x);
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(x), signed_level), _mm256_set1_epi16(1));
}

AVX2 static INLINE float sum_of_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

template <int R, int M>
AVX2 static void strip_avx2(const Strip& s, float* sums) {
  const __m256i half = _mm256_set1_epi8(15);
  const __m256i levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kLevels)));
  __m256 sum[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[r][m] = _mm256_setzero_ps();
  for (int64_t p = 0; p < s.pieces; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* from = s.codes + r * s.row_bytes + 32 * p;
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i low = _mm256_and_si256(bytes, half), high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), half);
      _mm_prefetch(reinterpret_cast<const char*>(from + R * s.row_bytes), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int64_t at = m * s.pieces + p;
        const int8_t* x = s.x + at * 64;
        const __m256 dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dot_avx2(levels, low, x), dot_avx2(levels, high, x + 32)));
        const __m256 scaled = _mm256_mul_ps(dot, _mm256_broadcast_ss(s.absmax + r * s.absmax_row + p));
        sum[r][m] = _mm256_fmadd_ps(scaled, _mm256_broadcast_ss(s.scales + at), sum[r][m]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r * M + m] = sum_of_lanes(sum[r][m]);
}
#endif

namespace {
struct Loops {
  int rows;  // of W that `several` takes at once; `one` takes one
  Loop several, one;
};
}  // namespace
#define KIND(name, few, more) \
  {{few, name<few, 1>, name<1, 1>}, {few, name<few, 2>, name<1, 2>}, {more, name<more, 3>, name<1, 3>}, \
   {more, name<more, 4>, name<1, 4>}}
static const Loops kPlain[kMost] = KIND(strip_plain, 4, 4);
#if MINILLAMA_X86
static const Loops kVnni[kMost] = KIND(strip_vnni, 4, 2), kAvx2[kMost] = KIND(strip_avx2, 4, 4);
#endif

static const Loops* loops() {
#if MINILLAMA_X86
  if (vectors_have_vnni()) return kVnni;
  if (vectors().kind != Kind::plain) return kAvx2;
#endif
  return kPlain;
}

bool nf4_int8_fits(const NF4& w) { return w.columns % kNF4Piece == 0 && w.block_size % kNF4Piece == 0; }

void nf4_int8_lay_out(const float* x, int64_t M, int64_t columns, NF4Int8Rows& rows) {
  const int64_t pieces = M * columns / kNF4Piece;
  std::vector<int64_t> none;
  rows.M = M;
  rows.columns = columns;
  int8_rows(x, pieces, kNF4Piece, NAN, rows.codes, rows.scales, none);  // no size reaches NaN: nothing is left out
  rows.offsets.resize(pieces + 1);  // and scales: of odd pieces one more is read
  for (int64_t p = 0; p < pieces; ++p) {
    int8_t* codes = &rows.codes[p * kNF4Piece];
    int8_t piece[kNF4Piece];
    std::copy(codes, codes + kNF4Piece, piece);
    int32_t sum = 0;
    for (int64_t k = 0; k < kNF4Piece; ++k) {
      codes[k % 2 ? k / 2 : 32 + k / 2] = piece[k];
      sum += piece[k];
    }
    rows.offsets[p] = -kStep * sum;
    rows.scales[p] /= 127.0f;
  }
  rows.scales.push_back(0);
  if (nf4_has_row(M)) nf4_row_lay_out(rows);
}

// Many rows of x: see int8_tiles.cpp. A piece is a run of its columns.
static void rows_by_tiles(const NF4& w, const NF4Int8Rows& x, int64_t begin, int64_t end, float* y, int64_t y_row) {
  const int64_t pieces = w.columns / kNF4Piece, row_bytes = w.columns / 2;
  std::vector<uint8_t> levels(kTileRows * w.columns);
  std::vector<float> of_rows(pieces * kTileRows), absmax(pieces * kTileRows, 0.0f), sums(x.M * kTileRows);
  uint8_t unsigned_levels[16];
  for (int i = 0; i < 16; ++i) unsigned_levels[i] = static_cast<uint8_t>(kLevels[i] + kStep);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t rows = std::min(kTileRows, end - first);
    interleave_levels(w.codes + first * row_bytes, row_bytes, rows, unsigned_levels, levels.data());
    nf4_absmax_of_rows(w, first, rows, kNF4Piece, of_rows.data());
    for (int64_t i = 0; i < rows * pieces; ++i) absmax[i % pieces * kTileRows + i / pieces] = of_rows[i];
    int8_tile_scaled_dots({levels.data(), x.codes.data(), w.columns, x.M, pieces, kNF4Piece, x.offsets.data()},
                          absmax.data(), x.scales.data(), sums.data());
    for (int64_t m = 0; m < x.M; ++m)
      for (int64_t r = 0; r < rows; ++r) y[m * y_row + first - begin + r] = sums[m * kTileRows + r] / kStep;
  }
}

void nf4_int8_rows(const NF4& w, const NF4Int8Rows& x, int64_t begin, int64_t end, float* y, int64_t y_row) {
  if (nf4_has_row(x.M)) return nf4_row(w, x, begin, end, y);
  if (int8_has_tiles(x.M, w.columns)) return rows_by_tiles(w, x, begin, end, y, y_row);
  const int64_t pieces = w.columns / kNF4Piece, row_bytes = w.columns / 2;
  std::vector<float> absmax(kGroup * pieces + 1);
  float sums[4 * kMost];
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t rows = std::min(kGroup, end - first);
    nf4_absmax_of_rows(w, first, rows, kNF4Piece, absmax.data());
    for (int64_t m = 0; m < x.M; m += kMost)
      for (int64_t r = 0, of_w; r < rows; r += of_w) {
        const int64_t of_x = std::min<int64_t>(kMost, x.M - m), at = m * pieces;
        const Loops& loop = loops()[of_x - 1];
        of_w = rows - r >= loop.rows ? loop.rows : 1;
        (of_w > 1 ? loop.several : loop.one)({w.codes + (first + r) * row_bytes, row_bytes, &absmax[r * pieces], pieces,
                                              &x.codes[at * 64], &x.scales[at], &x.offsets[at], pieces}, sums);
        for (int64_t i = 0; i < of_w * of_x; ++i)
          y[(m + i % of_x) * y_row + first - begin + r + i / of_x] = sums[i] / kStep;
      }
  }
}

}  // namespace minillama
