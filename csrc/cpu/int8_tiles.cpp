// With many rows of x the dot products themselves are the work, so nothing else may stand between them. Of W a vector
// holds four columns of 16 rows, of x four columns of one row, repeated: vpdpbusd adds four products to each of 16
// numbers of y. No lanes are left to be added up, a number of x is loaded once for 32 rows of W, and scales are
// multiplied once for 16 dots. To lay out W so costs as much as some ten rows of x.

#include "int8_tiles.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "vectors.h"

#if MINILLAMA_X86
#include <immintrin.h>
#endif

namespace minillama {

bool int8_has_tiles(int64_t M, int64_t columns) { return vectors_have_vnni() && M >= kTiledRows && columns % 4 == 0; }

#if MINILLAMA_X86
constexpr int64_t kAhead = 512;  // bytes; sixteen rows are more than a CPU itself reads ahead

// 16 x 16 fours, rows to columns: blocks of 1, 2, 4 and 8 change places across the diagonal.
AVX512 static INLINE void transpose(__m512i (&rows)[16]) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int size = 1; size < 16; size *= 2) {
    const __m512i size_of_block = _mm512_set1_epi32(size);
    const __mmask16 upper = _mm512_test_epi32_mask(lane, size_of_block);
    // a lane of the first row stays or, in the upper blocks, comes from the second row (16 and more), `size` before
    const __m512i to_first = _mm512_mask_add_epi32(lane, upper, lane, _mm512_set1_epi32(16 - size));
    const __m512i below = _mm512_add_epi32(lane, size_of_block);
    const __m512i to_second = _mm512_mask_add_epi32(below, upper, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (!(i & size)) {
        const __m512i first = rows[i];
        rows[i] = _mm512_permutex2var_epi32(first, to_first, rows[i + size]);
        rows[i + size] = _mm512_permutex2var_epi32(first, to_second, rows[i + size]);
      }
  }
}

AVX512 static void interleave(const char* from, int64_t row_bytes, int64_t rows, uint32_t* out) {
  const int64_t fours = row_bytes / 4;
  for (int64_t r = 0; r < kTileRows; r += 16)
    for (int64_t i = 0; i < fours; i += 16) {
      const int64_t taken = std::min<int64_t>(16, fours - i);
      const auto there = static_cast<__mmask16>((1 << taken) - 1);
      __m512i block[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        const char* row = from + std::min(r + j, rows - 1) * row_bytes + 4 * i;
        block[j] = _mm512_maskz_loadu_epi32(there, row);
        _mm_prefetch(row + kAhead, _MM_HINT_T0);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j)
        if (j < taken) _mm512_storeu_si512(out + (i + j) * kTileRows + r, block[j]);
    }
}

void interleave_fours(const void* from, int64_t row_bytes, int64_t rows, uint32_t* out) {
  interleave(static_cast<const char*>(from), row_bytes, rows, out);
}

AVX512 static void levels_of(const uint32_t* codes, int64_t fours, const uint8_t* levels, uint8_t* out) {
  const __m512i half = _mm512_set1_epi8(15);
  const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  constexpr int64_t eight = 8 * 4 * kTileRows;  // bytes of 8 fours of all rows
  for (int64_t i = 0; i < fours; i += 8, codes += eight / 4, out += 2 * eight)
    for (int64_t j = 0; j < eight; j += 64) {
      const __m512i bytes = _mm512_loadu_si512(codes + j / 4);
      _mm512_storeu_si512(out + j, _mm512_shuffle_epi8(table, _mm512_and_si512(bytes, half)));
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half);
      _mm512_storeu_si512(out + eight + j, _mm512_shuffle_epi8(table, high));
    }
}

void interleave_levels(const uint8_t* codes, int64_t row_bytes, int64_t rows, const uint8_t* levels, uint8_t* out) {
  std::vector<uint32_t> fours(row_bytes / 4 * kTileRows);
  interleave_fours(codes, row_bytes, rows, fours.data());
  levels_of(fours.data(), row_bytes / 4, levels, out);
}

constexpr int kMost = 6;  // rows of x whose sums, integers and fp32, fit the registers

// dots[m] += w x[m] over `depth` columns, of 2 x 16 rows of W
template <int M>
AVX512_VNNI static INLINE void add_dots(const uint8_t* w, const int8_t* x, int64_t x_row, int64_t depth,
                                        __m512i (&dots)[M][2]) {
  for (int64_t k = 0; k < depth; k += 4, w += 4 * kTileRows) {
    const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      int32_t four;
      std::memcpy(&four, x + m * x_row + k, sizeof four);
      dots[m][0] = _mm512_dpbusd_epi32(dots[m][0], w0, _mm512_set1_epi32(four));
      dots[m][1] = _mm512_dpbusd_epi32(dots[m][1], w1, _mm512_set1_epi32(four));
    }
  }
}

template <int M>
AVX512_VNNI static void dots_of_rows(const Int8Tile& t, int64_t first, int32_t* sums) {
  __m512i dots[M][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) dots[m][0] = dots[m][1] = _mm512_set1_epi32(t.offsets[first + m]);
  add_dots<M>(t.w, t.x + first * t.x_row, t.x_row, t.depth, dots);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) _mm512_storeu_si512(sums + (first + m) * kTileRows + 16 * v, dots[m][v]);
}

template <int M>
AVX512_VNNI static void scaled_dots_of_rows(const Int8Tile& t, int64_t first, const float* absmax, const float* scales,
                                            float* sums) {
  __m512 sum[M][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
  for (int64_t run = 0; run < t.runs; ++run) {
    __m512i dots[M][2];
    const int64_t at = first * t.runs + run;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) dots[m][0] = dots[m][1] = _mm512_set1_epi32(t.offsets[at + m * t.runs]);
    add_dots<M>(t.w + run * t.depth * kTileRows, t.x + first * t.x_row + run * t.depth, t.x_row, t.depth, dots);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m512 of_w = _mm512_loadu_ps(absmax + run * kTileRows + 16 * v);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[m][v]), of_w);
        sum[m][v] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(scales[at + m * t.runs]), sum[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(sums + (first + m) * kTileRows + 16 * v, sum[m][v]);
}

// Calls take<M>(first) for all rows of x, kMost at a time and then those that are left.
#define FOR_ALL_ROWS(take, M, ...)                                          \
  for (int64_t first = 0; first < M; first += kMost) {                      \
    switch (std::min<int64_t>(kMost, M - first)) {                          \
      case 1: take<1>(tile, first, __VA_ARGS__); break;                     \
      case 2: take<2>(tile, first, __VA_ARGS__); break;                     \
      case 3: take<3>(tile, first, __VA_ARGS__); break;                     \
      case 4: take<4>(tile, first, __VA_ARGS__); break;                     \
      case 5: take<5>(tile, first, __VA_ARGS__); break;                     \
      default: take<kMost>(tile, first, __VA_ARGS__);                       \
    }                                                                       \
  }

void int8_tile_dots(const Int8Tile& tile, int32_t* sums) { FOR_ALL_ROWS(dots_of_rows, tile.M, sums) }

void int8_tile_scaled_dots(const Int8Tile& tile, const float* absmax, const float* scales, float* sums) {
  FOR_ALL_ROWS(scaled_dots_of_rows, tile.M, absmax, scales, sums)
}
#else
void interleave_fours(const void*, int64_t, int64_t, uint32_t*) {}
void interleave_levels(const uint8_t*, int64_t, int64_t, const uint8_t*, uint8_t*) {}
void int8_tile_dots(const Int8Tile&, int32_t*) {}
void int8_tile_scaled_dots(const Int8Tile&, const float*, const float*, float*) {}
#endif

}  // namespace minillama
