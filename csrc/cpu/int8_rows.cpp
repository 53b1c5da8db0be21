// The loops are written for the compiler's own vectors: sizes are compared as integers, which order positive floats, NaN
// above all others; and rounding is an addition, see `kRound`.

#include "int8_rows.h"

#include <algorithm>
#include <cstring>

#include "lanes.h"
#include "vectors.h"

namespace minillama {

constexpr int64_t kStrip = 1024;
constexpr int32_t kInfinity = 0x7F800000;
// 1.5 * 2^23: from 2^23 on, numbers are whole, so that adding this rounds to the nearest whole number, half to even, which
// then lies in the lowest bits. Of infinity and NaN the lowest byte is 0: a row of zeros, and one with NaN, has codes 0.
constexpr float kRound = 12582912.0f;

static int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The largest size below the threshold, or NaN; columns that reach the threshold are marked.
static INLINE int32_t largest(const float* x, int64_t columns, int32_t threshold, uint8_t* is_outlier) {
  int32_t most = 0, bits[kStrip];
  for (int64_t k = 0; k < columns; k += kStrip) {
    const int64_t size = std::min(kStrip, columns - k);
    std::memcpy(bits, x + k, size * sizeof(float));
    for (int64_t i = 0; i < size; ++i) {
      const int32_t of_size = bits[i] & 0x7FFFFFFF;
      const bool reaches = (of_size >= threshold) & (of_size <= kInfinity);
      is_outlier[k + i] |= reaches;
      most = std::max(most, reaches ? 0 : of_size);
    }
  }
  return most;
}

// Two loops: a product and a sum in one expression may be fused, and then be rounded once instead of twice.
static INLINE void encode(const float* x, int64_t columns, float scale, int8_t* codes) {
  float scaled[kStrip];
  int32_t bits[kStrip];
  for (int64_t k = 0; k < columns; k += kStrip) {
    const int64_t size = std::min(kStrip, columns - k);
    for (int64_t i = 0; i < size; ++i) scaled[i] = x[k + i] * scale;
    for (int64_t i = 0; i < size; ++i) scaled[i] += kRound;
    std::memcpy(bits, scaled, size * sizeof(float));
    for (int64_t i = 0; i < size; ++i) codes[k + i] = static_cast<int8_t>(bits[i]);
  }
}

#define KIND(kind, attributes)                                                                                      \
  attributes static int32_t largest_##kind(const float* x, int64_t columns, int32_t threshold, uint8_t* is_outlier) { \
    return largest(x, columns, threshold, is_outlier);                                                              \
  }                                                                                                                 \
  attributes static void encode_##kind(const float* x, int64_t columns, float scale, int8_t* codes) {                \
    encode(x, columns, scale, codes);                                                                               \
  }
KIND(plain, )
#if MINILLAMA_X86
KIND(avx2, AVX2)
KIND(avx512, AVX512)
#endif

void int8_rows(const float* x, int64_t M, int64_t columns, float threshold, std::vector<int8_t>& codes,
               std::vector<float>& absmax, std::vector<int64_t>& outliers) {
  const auto largest_in_use = OF_KIND_IN_USE(largest);
  const auto encode_in_use = OF_KIND_IN_USE(encode);
  std::vector<uint8_t> is_outlier(columns, 0);
  codes.resize(M * columns);
  absmax.resize(M);
  outliers.clear();
  for (int64_t m = 0; m < M; ++m) {
    const int32_t most = largest_in_use(x + m * columns, columns, bits_of(threshold), is_outlier.data());
    std::memcpy(&absmax[m], &most, sizeof most);
    const float inverse = 1.0f / absmax[m];
    encode_in_use(x + m * columns, columns, 127.0f * inverse, &codes[m * columns]);
  }
  for (int64_t k = 0; k < columns; ++k)
    if (is_outlier[k]) outliers.push_back(k);
  for (int64_t m = 0; m < M; ++m)
    for (const int64_t k : outliers) codes[m * columns + k] = 0;
}

}  // namespace minillama
