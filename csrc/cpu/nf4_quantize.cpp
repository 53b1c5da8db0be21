// Both are a few operations for each number of memory: the loops are written for the compiler's own vectors, and numbers in
// bf16 and fp16 pass through a strip of fp32.

#include "nf4_quantize.h"

#include <algorithm>
#include <cstring>

#include "../nf4_table.h"
#include "lanes.h"
#include "nf4_matmul.h"
#include "vectors.h"

namespace minillama {

constexpr int64_t kStrip = 1024;  // even: two codes share a byte
constexpr float kSmallest = 1e-38f;  // below it 1 / absmax is infinite
static const float kLevels[16] = {MINILLAMA_NF4_LEVELS};

struct Halfway {  // between two levels, in fp32
  float values[15];
  Halfway() {
    for (int i = 0; i < 15; ++i) values[i] = (kLevels[i] + kLevels[i + 1]) / 2;
  }
};
static const Halfway kHalfway;

// Sizes are compared as integers, which order positive floats, NaN above all others.
static INLINE int32_t largest_of(const float* x, int64_t size) {
  int32_t bits[kStrip], most = 0;
  std::memcpy(bits, x, size * sizeof(float));
  for (int64_t i = 0; i < size; ++i) most = std::max(most, bits[i] & 0x7FFFFFFF);
  return most;
}

// How many half-way points lie below each number; `size` is even.
static INLINE void encode_of(const float* x, int64_t size, float inverse, uint8_t* codes) {
  int32_t found[kStrip] = {};
  for (int j = 0; j < 15; ++j) {
    const float halfway = kHalfway.values[j];
    for (int64_t i = 0; i < size; ++i) found[i] += x[i] * inverse > halfway;
  }
  for (int64_t i = 0; i < size / 2; ++i) codes[i] = static_cast<uint8_t>(found[2 * i] << 4 | found[2 * i + 1]);
}

#define KIND(kind, attributes)                                                                             \
  attributes static int32_t largest_##kind(const float* x, int64_t size) { return largest_of(x, size); }   \
  attributes static void encode_##kind(const float* x, int64_t size, float inverse, uint8_t* codes) {      \
    encode_of(x, size, inverse, codes);                                                                    \
  }
KIND(plain, )
#if MINILLAMA_X86
KIND(avx2, AVX2)
KIND(avx512, AVX512)
#endif

template <typename Scalar>
void nf4_quantize(const Scalar* x, int64_t n, int64_t block_size, int64_t begin, int64_t end, uint8_t* codes,
                  float* absmax) {
  const auto largest_in_use = OF_KIND_IN_USE(largest);
  const auto encode_in_use = OF_KIND_IN_USE(encode);
  float strip[kStrip];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * block_size, stop = std::min(n, first + block_size);
    int32_t most = 0;
    for (int64_t i = first; i < stop; i += kStrip) {
      const int64_t size = std::min(kStrip, stop - i);
      std::copy(x + i, x + i + size, strip);
      most = std::max(most, largest_in_use(strip, size));
    }
    std::memcpy(&absmax[block], &most, sizeof most);
    const float inverse = 1.0f / std::max(absmax[block], kSmallest);
    for (int64_t i = first; i < stop; i += kStrip) {
      const int64_t size = std::min(kStrip, stop - i);
      std::copy(x + i, x + i + size, strip);
      if (size % 2) strip[size] = 0;
      encode_in_use(strip, size + size % 2, inverse, codes + i / 2);
    }
  }
}

template <typename Scalar>
void nf4_dequantize(const kernels::NF4& w, const float* absmax, int64_t begin, int64_t end, Scalar* out) {
  float strip[kStrip];
  for (int64_t i = begin; i < end; i += kStrip) {
    const int64_t size = std::min(kStrip, end - i);
    nf4_decode(w, absmax, i, size, strip);
    std::copy(strip, strip + size, out + i);
  }
}

template <>
void nf4_dequantize<float>(const kernels::NF4& w, const float* absmax, int64_t begin, int64_t end, float* out) {
  nf4_decode(w, absmax, begin, end - begin, out + begin);
}

#define INSTANTIATE(Scalar)                                                                                        \
  template void nf4_quantize<Scalar>(const Scalar*, int64_t, int64_t, int64_t, int64_t, uint8_t*, float*);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE
template void nf4_dequantize<c10::BFloat16>(const kernels::NF4&, const float*, int64_t, int64_t, c10::BFloat16*);
template void nf4_dequantize<c10::Half>(const kernels::NF4&, const float*, int64_t, int64_t, c10::Half*);

}  // namespace minillama
