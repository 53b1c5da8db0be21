// Blocks are multiplied as they lie in the file, by integer dot products as in int8_dots.cpp: codes of W as unsigned bytes
// (q8_0: 128 more than they are), and what that adds, 8, 32 or 128 times x's sum, is there before the first product.
//
//   AVX-512 VNNI   64 columns at a time: two parts. Each lane has four products, whose scale is that of its part or, in
//                  q6_k, of its 16 columns.
//   AVX2           a part at a time; codes of q8_0 stay signed, and x takes their sign: w + 128 times x would not fit.
//   plain          the definition; the others leave it a part at the end of a row

#include "gguf_dots.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gguf_codes.h"
#include "gguf_tiles.h"
#include "int8_rows.h"
#include "lanes.h"
#include "vectors.h"

namespace minillama {

constexpr int kMost = 4;  // rows of x whose sums fit the registers

namespace {
struct Rows {
  const uint8_t* w;
  int64_t row_bytes;
  const int8_t* x;
  const float* scales;
  const int32_t* fours;
  int64_t columns;
};
using Loop = void (*)(const Rows&, float* sums);  // (rows, M)
}  // namespace

template <Block block>
static int64_t bytes_of(int64_t columns) {
  return columns / layout_of(block).numbers * layout_of(block).bytes;
}

template <Block block, int R, int M>
static void add_plain(const Rows& t, int64_t first, float* sums) {
  constexpr int64_t parts = layout_of(block).numbers / kPart;
  for (int64_t p = first; p < t.columns / kPart; ++p)
    for (int r = 0; r < R; ++r) {
      Part part;
      unpack<block>(t.w + r * t.row_bytes + p / parts * layout_of(block).bytes, p % parts, part);
      for (int m = 0; m < M; ++m) {
        const int8_t* x = t.x + m * t.columns + p * kPart;
        int32_t dots[2] = {0, 0};
        for (int i = 0; i < kPart; ++i) dots[i / 16] += part.q[i] * x[i];
        const float scale = t.scales[m * (t.columns / kPart) + p];
        for (int half = 0; half < 2; ++half)
          sums[r * M + m] += static_cast<float>(dots[half]) * part.scale[half] * scale;
      }
    }
}

template <Block block, int R, int M>
static void rows_plain(const Rows& t, float* sums) {
  std::fill(sums, sums + R * M, 0.0f);
  add_plain<block, R, M>(t, 0, sums);
}

#if MINILLAMA_X86
// What comes some rows later: the CPU itself reads ahead along a row, not from one to another, and a group of short rows
// is done before memory answers.
constexpr int64_t kAhead = 8192;  // bytes

template <Block block>
static INLINE const char* ahead_of(const uint8_t* row, int64_t column) {
  constexpr BlockLayout layout = layout_of(block);
  return reinterpret_cast<const char*>(row + column * layout.bytes / layout.numbers + kAhead);
}

// ---- AVX-512 VNNI

template <Block block, int R, int M>
AVX512_VNNI static void rows_vnni(const Rows& t, float* sums) {
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const int64_t parts = t.columns / kPart;
  __m512 sum[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[r][m] = _mm512_setzero_ps();
  for (int64_t group = 0; group < t.columns / 64; ++group) {
    Codes w[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      w[r] = codes_at<block>(t.w + r * t.row_bytes, group);
      _mm_prefetch(ahead_of<block>(t.w + r * t.row_bytes, 64 * group), _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m512i x = _mm512_loadu_si512(t.x + m * t.columns + 64 * group);
      const __m512i taken = _mm512_slli_epi32(_mm512_loadu_si512(t.fours + m * (t.columns / 4) + 16 * group), kZero<block>);
      int64_t both;
      std::memcpy(&both, t.scales + m * parts + 2 * group, sizeof both);
      const __m512 scale = _mm512_castsi512_ps(_mm512_permutexvar_epi32(halves, _mm512_set1_epi64(both)));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(taken, w[r].q, x));
        sum[r][m] = _mm512_fmadd_ps(_mm512_mul_ps(dot, w[r].scale), scale, sum[r][m]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r * M + m] = _mm512_reduce_add_ps(sum[r][m]);
  add_plain<block, R, M>(t, t.columns / 64 * 2, sums);
}

// ---- AVX2

AVX2 static INLINE float sum_of_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

template <Block block, int R, int M>
AVX2 static void rows_avx2(const Rows& t, float* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sum[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[r][m] = _mm256_setzero_ps();
  for (int64_t p = 0; p < t.columns / kPart; ++p)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const PartCodes w = part_at<block>(t.w + r * t.row_bytes, p);
      _mm_prefetch(ahead_of<block>(t.w + r * t.row_bytes, kPart * p), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const __m256i x = load(t.x + m * t.columns + kPart * p);
        __m256i dot;
        if constexpr (block == Block::q8_0) {
          dot = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w.q), _mm256_sign_epi8(x, w.q)), ones);
        } else {
          const __m256i taken = _mm256_slli_epi32(load(t.fours + m * (t.columns / 4) + 8 * p), kZero<block>);
          dot = _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(w.q, x), ones), taken);
        }
        const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), w.scale);
        sum[r][m] = _mm256_fmadd_ps(scaled, _mm256_broadcast_ss(t.scales + m * (t.columns / kPart) + p), sum[r][m]);
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r * M + m] = sum_of_lanes(sum[r][m]);
}
#endif

// ---- the door

namespace {
struct Loops {
  Loop several, one;  // kRowsOfW rows of W, or one
};
constexpr int kRowsOfW = 4;
}  // namespace

template <Block block, int M>
static Loops loops_of() {
#if MINILLAMA_X86
  if (vectors_have_vnni()) return {rows_vnni<block, kRowsOfW, M>, rows_vnni<block, 1, M>};
  if (vectors().kind != Kind::plain) return {rows_avx2<block, kRowsOfW, M>, rows_avx2<block, 1, M>};
#endif
  return {rows_plain<block, kRowsOfW, M>, rows_plain<block, 1, M>};
}

template <Block block>
static void multiply_in(const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y, int64_t y_row) {
  const int64_t K = x.columns, row_bytes = bytes_of<block>(K);
  const Loops all[kMost] = {loops_of<block, 1>(), loops_of<block, 2>(), loops_of<block, 3>(), loops_of<block, 4>()};
  float sums[kRowsOfW * kMost];
  for (int64_t r = begin, of_w; r < end; r += of_w) {
    of_w = x.M > 1 && end - r >= kRowsOfW ? kRowsOfW : 1;  // one row of x: what lies in one piece is there soonest
    for (int64_t m = 0; m < x.M; m += kMost) {
      const int64_t of_x = std::min<int64_t>(kMost, x.M - m);
      const Loops& loop = all[of_x - 1];
      (of_w > 1 ? loop.several : loop.one)({w + r * row_bytes, row_bytes, &x.codes[m * K], &x.scales[m * (K / kPart)],
                                            &x.fours[m * (K / 4)], K}, sums);
      for (int64_t i = 0; i < of_w * of_x; ++i) y[(m + i % of_x) * y_row + r - begin + i / of_x] = sums[i];
    }
  }
}

void gguf_lay_out(Block block, const float* x, int64_t M, int64_t columns, GGUFRows& rows) {
  std::vector<int64_t> none;
  rows.M = M;
  rows.columns = columns;
  int8_rows(x, M * columns / kPart, kPart, NAN, rows.codes, rows.scales, none);  // no size reaches NaN: no outliers
  for (float& scale : rows.scales) scale /= 127.0f;
  rows.scales.push_back(0);
  rows.fours.resize(M * columns / 4);
  for (size_t i = 0; i < rows.fours.size(); ++i) {
    const int8_t* four = &rows.codes[4 * i];
    rows.fours[i] = -(four[0] + four[1] + four[2] + four[3]);
  }
  if (gguf_has_row(M))
    gguf_row_lay_out(block, rows.codes.data(), rows.fours.data(), rows.scales.data(), columns, rows.lines);
}

void gguf_rounded_rows(Block block, const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y, int64_t y_row) {
  if (gguf_has_row(x.M)) return gguf_row(block, w, x.lines, x.columns, begin, end, y);
  if (gguf_has_tiles(x.M, x.columns)) return gguf_rows_by_tiles(block, w, x, begin, end, y, y_row);
  if (block == Block::q4_0) multiply_in<Block::q4_0>(w, x, begin, end, y, y_row);
  if (block == Block::q8_0) multiply_in<Block::q8_0>(w, x, begin, end, y, y_row);
  if (block == Block::q6_k) multiply_in<Block::q6_k>(w, x, begin, end, y, y_row);
}

}  // namespace minillama
