// With one row of x each block is used once, and what counts is how many loads and instructions stand between memory and
// the sum. A line of 128 columns is taken at a time, and one row of W after another: memory that is read in one piece
// comes twice as fast as four rows beside each other. A load across the end of a cache line costs two: W's cannot lie
// better, but x is laid out once for all rows of W, in whole lines, in the order in which codes come out:
//
//   q4_0, q8_0   four parts. Loads that overlap and permutations of their 16-bit words leave the parts' first 16 columns
//                in one vector and the second 16 in another: each part has four lanes, so one conversion and one scale
//                serve all four.
//   q6_k         half a block: low halves of 64 bytes, then their high halves, with the upper two bits of each. Its 16
//                scales become numbers once a block.

#include "gguf_row.h"

#include <algorithm>
#include <cstring>

#include "gguf_codes.h"
#include "vectors.h"

namespace minillama {

bool gguf_has_row(int64_t M) { return M == 1 && vectors_have_vnni(); }

#if MINILLAMA_X86
constexpr int64_t kAhead = 4096;  // bytes from what is read to what is fetched

template <Block block>
constexpr bool kShared = block != Block::q6_k;  // lanes of both vectors are those of the same part

// The column of a line whose code is byte `at` of vector `v`.
template <Block block>
static int64_t column_of(int64_t v, int64_t at) {
  return kShared<block> ? at / 16 * kPart + 16 * v + at % 16 : 64 * v + at;
}

template <Block block>
static void lay_out(const int8_t* codes, const int32_t* fours, const float* scales, int64_t columns,
                    std::vector<Int8Line>& lines) {
  lines.resize((columns + kLine - 1) / kLine);
  std::memset(lines.data(), 0, lines.size() * sizeof(Int8Line));
  for (int64_t i = 0; i < static_cast<int64_t>(lines.size()) * kLine / 4; ++i) {  // fours of columns
    Int8Line& line = lines[i / 32];
    const int64_t v = i % 32 / 16, lane = i % 16, column = i / 32 * kLine + column_of<block>(v, 4 * lane);
    if (column >= columns) continue;
    std::copy_n(codes + column, 4, line.codes[v] + 4 * lane);
    line.taken[kShared<block> ? 0 : v][lane] += fours[column / 4] * (1 << kZero<block>);
    line.scale[kShared<block> ? 0 : v][lane] = scales[column / kPart];
  }
}

// ---- q4_0 and q8_0: a part is `kWords` 16-bit words, its scale, then its codes

template <Block block>
constexpr int64_t kWords = layout_of(block).bytes / 2;

// Words of a line in two vectors that begin with words `first` and `second`: those of the second count from 32 on.
AVX512 static INLINE int16_t place(int64_t word, int64_t first, int64_t second) {
  return static_cast<int16_t>(word < first + 32 ? word - first : 32 + word - second);
}

// Eight words of each part from word `begin` of it on.
template <Block block>
AVX512 static __m512i codes_from(int64_t begin, int64_t first, int64_t second) {
  alignas(64) int16_t places[32];
  for (int i = 0; i < 32; ++i) places[i] = place(i / 8 * kWords<block> + begin + i % 8, first, second);
  return _mm512_load_si512(places);
}

// The scale of each part, four times.
template <Block block>
AVX512 static __m512i scales_from(int64_t second) {
  alignas(64) int16_t places[32];
  for (int i = 0; i < 32; ++i) places[i] = place(i / 4 % 4 * kWords<block>, 0, second);
  return _mm512_load_si512(places);
}

struct Places {
  __m512i first, second, scales;  // q4_0: both halves of a byte come together, second is not used
};

template <Block block>
AVX512 static Places places_of() {
  if constexpr (block == Block::q4_0) {
    const __m512i codes = codes_from<block>(1, 0, 4);
    return {codes, codes, scales_from<block>(4)};
  } else {
    return {codes_from<block>(1, 0, 32), codes_from<block>(9, 4, 36), scales_from<block>(32)};
  }
}

// 32 words from word `begin` on, of which `words` are there before it and in it; the others are 0.
AVX512 static INLINE __m512i words_at(const uint8_t* w, int64_t begin, int64_t words) {
  const int64_t there = std::min<int64_t>(32, std::max<int64_t>(0, words - begin));
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << there) - 1), w + 2 * begin);
}

struct LineCodes {
  __m512i first, second;
  __m512i halves;  // in its first 16 words, the scales of lanes in fp16
};

template <Block block>
AVX512 static INLINE LineCodes codes_of_line(const uint8_t* w, int64_t words, const Places& at) {
  if constexpr (block == Block::q4_0) {
    const __m512i head = words_at(w, 0, words), tail = words_at(w, 4, words), low = _mm512_set1_epi8(15);
    const __m512i both = _mm512_permutex2var_epi16(head, at.first, tail);
    return {_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16(both, 4), low),
            _mm512_permutexvar_epi16(at.scales, head)};
  } else {
    const __m512i a = words_at(w, 0, words), b = words_at(w, 32, words), zero = _mm512_set1_epi8(-128);
    const __m512i lower = _mm512_permutex2var_epi16(a, at.first, b);
    const __m512i upper = _mm512_permutex2var_epi16(words_at(w, 4, words), at.second, words_at(w, 36, words));
    return {_mm512_xor_si512(lower, zero), _mm512_xor_si512(upper, zero), _mm512_permutex2var_epi16(a, at.scales, b)};
  }
}

// sum += a line of which `words` are there
template <Block block>
AVX512_VNNI static INLINE __m512 add_line(const uint8_t* w, const Int8Line& x, int64_t words, const Places& at, __m512 sum) {
  const LineCodes codes = codes_of_line<block>(w, words, at);
  const __m512i of_first = _mm512_dpbusd_epi32(_mm512_load_si512(x.taken[0]), codes.first, _mm512_load_si512(x.codes[0]));
  const __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(of_first, codes.second, _mm512_load_si512(x.codes[1])));
  const __m512 scaled = _mm512_mul_ps(dot, _mm512_cvtph_ps(_mm512_castsi512_si256(codes.halves)));
  return _mm512_fmadd_ps(scaled, _mm512_load_ps(x.scale[0]), sum);
}

// ---- q6_k

// sum += a block, two lines
AVX512_VNNI static INLINE __m512 add_q6_k(const uint8_t* w, const Int8Line* x, __m512 sum) {
  const __m512i low = _mm512_set1_epi8(15), upper = _mm512_set1_epi8(48);
  const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 192)));
  const __m512 scales = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(half_at(w + 208)));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512i bytes = _mm512_loadu_si512(w + 64 * half), more = _mm512_broadcast_i64x4(load(w + 128 + 32 * half));
    const __m512i moved[2] = {_mm512_sllv_epi64(more, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2)),
                              _mm512_srlv_epi64(more, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2))};
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m512i four = _mm512_and_si512(v ? _mm512_srli_epi16(bytes, 4) : bytes, low);
      const __m512i codes = _mm512_or_si512(four, _mm512_and_si512(moved[v], upper));
      const __m512i taken = _mm512_load_si512(x[half].taken[v]);
      const __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(taken, codes, _mm512_load_si512(x[half].codes[v])));
      const __m512 scale = _mm512_permutexvar_ps(_mm512_add_epi32(each, _mm512_set1_epi32(8 * half + 4 * v)), scales);
      sum = _mm512_fmadd_ps(_mm512_mul_ps(dot, scale), _mm512_load_ps(x[half].scale[v]), sum);
    }
  }
  return sum;
}

// ---- rows

template <int64_t bytes>
AVX512 static INLINE void fetch(const uint8_t* w) {
#pragma GCC unroll 4
  for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + at), _MM_HINT_T0);
}

template <Block block>
AVX512_VNNI static void multiply(const uint8_t* w, const std::vector<Int8Line>& x, int64_t columns, int64_t rows, float* y) {
  constexpr int64_t bytes = kLine * layout_of(block).bytes / layout_of(block).numbers;
  const int64_t whole = columns / kLine, left = columns % kLine / kPart * kWords<block>;
  const Places at = places_of<block>();
  for (int64_t r = 0; r < rows; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < whole; ++i, w += bytes) {
      fetch<bytes>(w);
      sum = add_line<block>(w, x[i], bytes / 2, at, sum);
    }
    if (left) sum = add_line<block>(w, x[whole], left, at, sum);
    w += 2 * left;
    y[r] = _mm512_reduce_add_ps(sum);
  }
}

template <>
AVX512_VNNI void multiply<Block::q6_k>(const uint8_t* w, const std::vector<Int8Line>& x, int64_t columns, int64_t rows,
                                       float* y) {
  for (int64_t r = 0; r < rows; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < columns / kLine; i += 2, w += layout_of(Block::q6_k).bytes) {
      fetch<layout_of(Block::q6_k).bytes>(w);
      sum = add_q6_k(w, &x[i], sum);
    }
    y[r] = _mm512_reduce_add_ps(sum);
  }
}

void gguf_row_lay_out(Block block, const int8_t* codes, const int32_t* fours, const float* scales, int64_t columns,
                      std::vector<Int8Line>& lines) {
  if (block == Block::q4_0) lay_out<Block::q4_0>(codes, fours, scales, columns, lines);
  if (block == Block::q8_0) lay_out<Block::q8_0>(codes, fours, scales, columns, lines);
  if (block == Block::q6_k) lay_out<Block::q6_k>(codes, fours, scales, columns, lines);
}

void gguf_row(Block block, const uint8_t* w, const std::vector<Int8Line>& x, int64_t columns, int64_t begin, int64_t end,
              float* y) {
  w += begin * (columns / layout_of(block).numbers * layout_of(block).bytes);
  if (block == Block::q4_0) multiply<Block::q4_0>(w, x, columns, end - begin, y);
  if (block == Block::q8_0) multiply<Block::q8_0>(w, x, columns, end - begin, y);
  if (block == Block::q6_k) multiply<Block::q6_k>(w, x, columns, end - begin, y);
}
#else
void gguf_row_lay_out(Block, const int8_t*, const int32_t*, const float*, int64_t, std::vector<Int8Line>&) {}
void gguf_row(Block, const uint8_t*, const std::vector<Int8Line>&, int64_t, int64_t, int64_t, float*) {}
#endif

}  // namespace minillama
