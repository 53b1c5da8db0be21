// The CPU kernel of RoPE: plain loops over pointers, no tensors.
#pragma once

#include <cstdint>

namespace minillama {

// Turns the pairs of tokens [begin, end). x, y: (tokens, heads, width); cos, sin: (tables, width / 2) fp32,
// where token n uses row n % tables. Scalar is float, c10::BFloat16 or c10::Half.
template <typename Scalar>
void rope_cpu(const Scalar* x, const float* cos, const float* sin, Scalar* y, int64_t begin, int64_t end,
              int64_t tables, int64_t heads, int64_t width, bool interleaved);

}  // namespace minillama
