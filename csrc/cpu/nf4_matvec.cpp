// Products of NF4 weights with few rows of activations (QLoRA, arXiv 2305.14314).
//
//   y[m, n] = sum over blocks b of  absmax[n, b] * (sum over k in b of  level[n, k] * x[m, k])
//
// 2 M FLOPs for each weight of half a byte: with one row of x a CPU waits for memory, if decoding is cheap. So
// levels are looked up in registers, several codes at once; a block's absmax is multiplied once, with its sum; and
// nothing is moved to where it belongs: x is laid out, once a call, in the order in which the codes come out.
//
//   AVX-512   16 levels are one register. A line of the cache is 16 numbers of 8 codes: shifted by 0, 4 ... 28 bits,
//             their lowest four bits look up 16 levels (vpermps).
//   AVX2      16 codes look up 16 bytes (vpshufb): four of them, one from each byte of a level, make a float.
//
// A row's sums are kept by lane until its end, so their order depends neither on M nor on which rows are computed.

#include "nf4_matvec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../nf4_table.h"
#include "lanes.h"
#include "nf4_absmax.h"
#include "vectors.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

using kernels::NF4;

constexpr int64_t kGroup = 12;       // rows of W whose sums stay in the cache
constexpr int64_t kStripBytes = 32768;  // of x, which stays there too
constexpr int64_t kAhead = 8192;     // bytes from what is read to what is fetched, in the order of memory
constexpr int kLanes = 16;           // sums of one row of W with one of x, added up at its end
constexpr int kMost = 4;             // rows of x whose sums fit the registers

namespace {
// Some rows of W times M rows of x, in `pieces` pieces of 64 columns.
struct Strip {
  const uint8_t* codes;
  int64_t row_bytes;
  const float* absmax;  // one for each piece, rows `absmax_row` apart; one more is read where pieces are odd
  int64_t absmax_row;
  const float* x;  // (chunks, M, kMatvecChunk)
  int64_t pieces;
  float* sums;  // (rows, M, kLanes), which are added to
};
using Loop = void (*)(const Strip&);

struct Loops {
  int rows;  // that `several` takes at once; `one` takes one
  Loop several, one;
  void (*add_up)(float* sums, int64_t count);  // of `count` sums by lane the first numbers become the sums
};
}  // namespace

static const float kLevels[16] = {MINILLAMA_NF4_LEVELS};

#if MINILLAMA_X86

template <int R, int M>
AVX512 static void strip_avx512(const Strip& s) {
  const __m512 levels = _mm512_loadu_ps(kLevels);
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m512 sums[R][M], part[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[r][m] = _mm512_loadu_ps(s.sums + (r * M + m) * kLanes);
  for (int64_t p = 0; p < s.pieces; p += 2) {
    const __mmask16 there = s.pieces - p > 1 ? 0xFFFF : 0xFF;  // in x, numbers beyond the last piece are 0
    const float* x_chunk = s.x + p / 2 * M * kMatvecChunk;
    __m512i codes[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* from = s.codes + r * s.row_bytes + p * (kNF4Piece / 2);
      codes[r] = _mm512_maskz_loadu_epi32(there, from);
      _mm_prefetch(reinterpret_cast<const char*>(s.codes + 32 * (R * p + 2 * r) + kAhead), _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      __m512 level[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) level[r] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes[r], 4 * i), levels);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        __m512 x = _mm512_loadu_ps(x_chunk + m * kMatvecChunk + 16 * i);
        asm("" : "+v"(x));  // stays in a register: loaded anew for each row of W, it would keep codes from being read
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          part[r][m] = i ? _mm512_fmadd_ps(level[r], x, part[r][m]) : _mm512_mul_ps(level[r], x);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      double two;
      std::memcpy(&two, s.absmax + r * s.absmax_row + p, sizeof two);
      const __m512 absmax = _mm512_permutexvar_ps(halves, _mm512_castpd_ps(_mm512_set1_pd(two)));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[r][m] = _mm512_fmadd_ps(part[r][m], absmax, sums[r][m]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(s.sums + (r * M + m) * kLanes, sums[r][m]);
}

// Byte i of each of the 16 levels, in both halves of a register.
AVX2 static INLINE __m256i byte_of_levels(int i) {
  alignas(32) uint8_t bytes[32];
  for (int level = 0; level < 32; ++level)
    bytes[level] = reinterpret_cast<const uint8_t*>(kLevels + level % 16)[i];
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

template <int R, int M>
AVX2 static void strip_avx2(const Strip& s) {
  static_assert(R == 1, "sixteen registers hold one row of W");
  const __m256i byte0 = byte_of_levels(0), byte1 = byte_of_levels(1), byte2 = byte_of_levels(2), byte3 = byte_of_levels(3);
  const __m256i low_half = _mm256_set1_epi8(15);
  __m256 sums[M], part[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m] = _mm256_loadu_ps(s.sums + m * kLanes);
  for (int64_t p = 0; p < s.pieces; ++p) {
    const uint8_t* from = s.codes + p * (kNF4Piece / 2);
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    _mm_prefetch(reinterpret_cast<const char*>(from + kGroup * s.row_bytes), _MM_HINT_T0);
    const float* x = s.x + p / 2 * M * kMatvecChunk + p % 2 * kNF4Piece;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i codes = _mm256_and_si256(half ? _mm256_srli_epi16(bytes, 4) : bytes, low_half);
      const __m256i a = _mm256_shuffle_epi8(byte0, codes), b = _mm256_shuffle_epi8(byte1, codes);
      const __m256i c = _mm256_shuffle_epi8(byte2, codes), d = _mm256_shuffle_epi8(byte3, codes);
      const __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
      const __m256i cd[2] = {_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)};
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const __m256 level = _mm256_castsi256_ps(q % 2 ? _mm256_unpackhi_epi16(ab[q / 2], cd[q / 2])
                                                       : _mm256_unpacklo_epi16(ab[q / 2], cd[q / 2]));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const __m256 numbers = _mm256_loadu_ps(x + m * kMatvecChunk + 32 * half + 8 * q);
          part[m] = half || q ? _mm256_fmadd_ps(level, numbers, part[m]) : _mm256_mul_ps(level, numbers);
        }
      }
    }
    const __m256 absmax = _mm256_broadcast_ss(s.absmax + p);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m] = _mm256_fmadd_ps(part[m], absmax, sums[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) _mm256_storeu_ps(s.sums + m * kLanes, sums[m]);
}

AVX512 static void add_up_avx512(float* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] = _mm512_reduce_add_ps(_mm512_loadu_ps(sums + i * kLanes));
}

AVX2 static void add_up_avx2(float* sums, int64_t count) {  // eight lanes; the others are 0
  for (int64_t i = 0; i < count; ++i) sums[i] = sum_of<8>(load<8>(sums + i * kLanes));
}

static const Loops kAvx512[kMost] = {{4, strip_avx512<4, 1>, strip_avx512<1, 1>, add_up_avx512},
                                     {4, strip_avx512<4, 2>, strip_avx512<1, 2>, add_up_avx512},
                                     {4, strip_avx512<4, 3>, strip_avx512<1, 3>, add_up_avx512},
                                     {3, strip_avx512<3, 4>, strip_avx512<1, 4>, add_up_avx512}};
static const Loops kAvx2[kMost] = {{1, strip_avx2<1, 1>, strip_avx2<1, 1>, add_up_avx2},
                                   {1, strip_avx2<1, 2>, strip_avx2<1, 2>, add_up_avx2},
                                   {1, strip_avx2<1, 3>, strip_avx2<1, 3>, add_up_avx2},
                                   {1, strip_avx2<1, 4>, strip_avx2<1, 4>, add_up_avx2}};

static const Loops& loops(int64_t M) { return (vectors().kind == Kind::avx512 ? kAvx512 : kAvx2)[M - 1]; }
#else
static const Loops& loops(int64_t) { static const Loops none{}; return none; }
#endif

bool nf4_has_pieces(const NF4& w) {
  return vectors().kind != Kind::plain && w.columns % kNF4Piece == 0 && w.block_size % kNF4Piece == 0;
}

// Which weight of a chunk the j-th number that comes out of the registers is; the low half of a byte is its second.
static int64_t weight_of_lane(Kind kind, int64_t j) {
  if (kind == Kind::avx512) return 2 * (j % 16 * 4 + j / 32) + (j / 16 % 2 == 0);
  const int64_t lane = j % 8, byte = j / 64 * 32 + lane / 4 * 16 + j / 8 % 4 * 4 + lane % 4;
  return 2 * byte + (j / 32 % 2 == 0);
}

static int64_t whole_chunks(int64_t columns) { return (columns + kMatvecChunk - 1) / kMatvecChunk; }

static int64_t size_of(int64_t M, int64_t columns) { return M * whole_chunks(columns) * kMatvecChunk; }

// Where in the rows laid out, 16 numbers longer than need be, a line of the cache begins: loads across lines are slower.
static const float* line_in(const std::vector<float>& rows) {
  return reinterpret_cast<const float*>((reinterpret_cast<uintptr_t>(rows.data()) + 63) / 64 * 64);
}

// Rows of x that are multiplied together, kMost or what is left, lie chunk by chunk beside each other, filled up with 0.
void nf4_matvec_lay_out(const float* x, int64_t M, int64_t columns, std::vector<float>& rows) {
  int64_t order[kMatvecChunk];
  for (int64_t j = 0; j < kMatvecChunk; ++j) order[j] = weight_of_lane(vectors().kind, j);
  rows.resize(size_of(M, columns) + 16);
  float* out = const_cast<float*>(line_in(rows));
  for (int64_t m0 = 0; m0 < M; m0 += kMost)
    for (int64_t k = 0; k < columns; k += kMatvecChunk)
      for (int64_t m = m0; m < std::min(M, m0 + kMost); ++m, out += kMatvecChunk)
        for (int64_t j = 0; j < kMatvecChunk; ++j)
          out[j] = k + order[j] < columns ? x[m * columns + k + order[j]] : 0;
}

// sums (rows, M, kLanes) of at most kGroup rows of W from `first` on, and at most kMost rows of x.
static void group_sums(const NF4& w, const float* absmax, int64_t absmax_row, const float* x, int64_t M, int64_t first,
                       int64_t rows, float* sums) {
  const int64_t pieces = w.columns / kNF4Piece;
  const int64_t step = 2 * std::max<int64_t>(1, kStripBytes / 4 / M / kMatvecChunk);
  const Loops& kind = loops(M);
  std::fill(sums, sums + rows * M * kLanes, 0.0f);
  for (int64_t p = 0; p < pieces; p += step) {
    for (int64_t r = 0, taken; r < rows; r += taken) {
      taken = rows - r >= kind.rows ? kind.rows : 1;
      const uint8_t* codes = w.codes + ((first + r) * w.columns + p * kNF4Piece) / 2;
      (taken > 1 ? kind.several : kind.one)({codes, w.columns / 2, absmax + r * absmax_row + p, absmax_row,
                                             x + p * M * kNF4Piece, std::min(step, pieces - p), sums + r * M * kLanes});
    }
  }
}

// One number of y where a block's sum may have overflowed before its absmax made it small: each weight is multiplied out
// first, as the formula says, and the sum has room. x: row m of the M that are laid out together.
static float number_of_y(const NF4& w, const float* absmax, const float* x, int64_t M, int64_t m, int64_t n) {
  double sum = 0;
  for (int64_t j = 0; j < whole_chunks(w.columns) * kMatvecChunk; ++j) {
    const int64_t chunk = j / kMatvecChunk, lane = j % kMatvecChunk;
    const int64_t k = chunk * kMatvecChunk + weight_of_lane(vectors().kind, lane);
    if (k >= w.columns) continue;
    const uint8_t pair = w.codes[(n * w.columns + k) / 2];
    const float weight = kLevels[k % 2 ? pair & 15 : pair >> 4] * absmax[k / kNF4Piece];
    sum += static_cast<double>(weight) * x[(chunk * M + m) * kMatvecChunk + lane];
  }
  return static_cast<float>(sum);
}

void nf4_matvec(const NF4& w, const std::vector<float>& x, int64_t M, int64_t begin, int64_t end, float* y,
                int64_t y_row) {
  const int64_t absmax_row = w.columns / kNF4Piece;
  std::vector<float> absmax(kGroup * absmax_row + 1, 0.0f);
  float sums[kGroup * kMost * kLanes];
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t rows = std::min(kGroup, end - first);
    nf4_absmax_of_rows(w, first, rows, kNF4Piece, absmax.data());
    for (int64_t m = 0; m < M; m += kMost) {
      const int64_t taken = std::min<int64_t>(kMost, M - m);
      const float* together = line_in(x) + size_of(m, w.columns);
      group_sums(w, absmax.data(), absmax_row, together, taken, first, rows, sums);
      loops(taken).add_up(sums, rows * taken);
      const float* found = sums;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < taken; ++i, ++found) {
          const float* of_w = &absmax[r * absmax_row];
          const bool fits = std::isfinite(*found);
          y[(m + i) * y_row + first - begin + r] = fits ? *found : number_of_y(w, of_w, together, taken, i, first + r);
        }
    }
  }
}

}  // namespace minillama
