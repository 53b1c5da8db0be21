// One product of fp32 numbers for each weight, rounded once: every kind of loops gives the same bits.

#include "gguf_rows.h"

#include "gguf_codes.h"
#include "vectors.h"

namespace minillama {

template <Block block>
static void read_parts(const uint8_t* bytes, int64_t first, int64_t end, float* out) {
  constexpr int64_t parts = layout_of(block).numbers / kPart;
  for (int64_t p = first; p < end; ++p) {
    Part part;
    unpack<block>(bytes + p / parts * layout_of(block).bytes, p % parts, part);
    for (int64_t i = 0; i < kPart; ++i) out[p * kPart + i] = part.scale[i / 16] * static_cast<float>(part.q[i]);
  }
}

template <Block block>
static void read_plain(const uint8_t* bytes, int64_t columns, float* out) {
  read_parts<block>(bytes, 0, columns / kPart, out);
}

#if MINILLAMA_X86
template <Block block>
AVX512 static void read_avx512(const uint8_t* bytes, int64_t columns, float* out) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(1 << kZero<block>));
  for (int64_t group = 0; group < columns / 64; ++group) {
    const Codes codes = codes_at<block>(bytes, group);
    alignas(64) int8_t q[64];
    alignas(64) float scales[16];
    _mm512_store_si512(q, _mm512_sub_epi8(codes.q, zero));
    _mm512_store_ps(scales, codes.scale);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i whole = _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(q + 16 * i)));
      _mm512_storeu_ps(out + 64 * group + 16 * i, _mm512_mul_ps(_mm512_set1_ps(scales[4 * i]), _mm512_cvtepi32_ps(whole)));
    }
  }
  read_parts<block>(bytes, columns / 64 * 2, columns / kPart, out);
}

template <Block block>
AVX2 static void read_avx2(const uint8_t* bytes, int64_t columns, float* out) {
  const __m256i zero = _mm256_set1_epi8(block == Block::q8_0 ? 0 : 1 << kZero<block>);
  for (int64_t p = 0; p < columns / kPart; ++p) {
    const PartCodes codes = part_at<block>(bytes, p);
    alignas(32) int8_t q[32];
    alignas(32) float scales[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(q), _mm256_sub_epi8(codes.q, zero));
    _mm256_store_ps(scales, codes.scale);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + 8 * i)));
      _mm256_storeu_ps(out + kPart * p + 8 * i, _mm256_mul_ps(_mm256_set1_ps(scales[2 * i]), _mm256_cvtepi32_ps(whole)));
    }
  }
}
#endif

template <Block block>
static void read_in(const uint8_t* bytes, int64_t columns, float* out) {
#if MINILLAMA_X86
  if (vectors().kind == Kind::avx512) return read_avx512<block>(bytes, columns, out);
  if (vectors().kind == Kind::avx2) return read_avx2<block>(bytes, columns, out);
#endif
  read_plain<block>(bytes, columns, out);
}

void gguf_read_row(Block block, const uint8_t* bytes, int64_t columns, float* out) {
  if (block == Block::q4_0) read_in<Block::q4_0>(bytes, columns, out);
  if (block == Block::q8_0) read_in<Block::q8_0>(bytes, columns, out);
  if (block == Block::q6_k) read_in<Block::q6_k>(bytes, columns, out);
}

}  // namespace minillama
