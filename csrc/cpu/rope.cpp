// RoPE on the CPU: (y0, y1) = (x0 cos - x1 sin, x1 cos + x0 sin) for every pair of every head.
//
// Cost per element: 3 FLOPs, x read once, y written once (all heads of a token share its row of the table, which
// stays in cache). The tensor version of bf16 makes an fp32 copy, a complex product and a cast, that of half-split a
// concatenation: the same data several times. fp32 interleaved is one complex product there, and as fast as this.
// Arithmetic in fp32, rounded once to x's dtype. The backward pass is this kernel with -sin.

#include "rope.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace minillama {

// The constant distances (2i, 2i + 1) or (i, i + half) are template arguments: the compiler vectorises each loop.
template <typename Scalar, bool interleaved>
static void turn_head(const Scalar* __restrict__ x, const float* c, const float* s, Scalar* __restrict__ y,
                      int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const float x0 = x[first], x1 = x[second];
    y[first] = static_cast<Scalar>(x0 * c[i] - x1 * s[i]);
    y[second] = static_cast<Scalar>(x1 * c[i] + x0 * s[i]);
  }
}

template <typename Scalar>
void rope_cpu(const Scalar* x, const float* cos, const float* sin, Scalar* y, int64_t begin, int64_t end,
              int64_t tables, int64_t heads, int64_t width, bool interleaved) {
  const auto turn = interleaved ? turn_head<Scalar, true> : turn_head<Scalar, false>;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t row = (token % tables) * (width / 2);
    for (int64_t head = token * heads; head < (token + 1) * heads; ++head)
      turn(x + head * width, cos + row, sin + row, y + head * width, width / 2);
  }
}

#define INSTANTIATE(Scalar)                                                                           \
  template void rope_cpu<Scalar>(const Scalar*, const float*, const float*, Scalar*, int64_t, int64_t, \
                                 int64_t, int64_t, int64_t, bool);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace minillama
