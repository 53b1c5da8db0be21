// The loops of a training step beside its products: RMSNorm, SwiGLU's gate, and the softmax under a cross entropy. Each is
// a pass or two over rows that stay in the cache, where single operations write a tensor for every step of the formula.
#pragma once

#include <cstdint>

namespace minillama {

// Rows are fp32 and dense, n numbers long.
struct RowLoops {
  double (*sum_of_squares)(const float* x, int64_t n);

  void (*normalize)(const float* x, float scale, const float* gain, float* y, int64_t n);  // y = x * scale * gain

  // With g = dy * gain and scale = 1 / sqrt(mean(x^2) + eps): dx = scale (g - x scale^2 mean(g x)), and dy * x * scale is
  // added to d_gain.
  void (*normalize_backward)(const float* dy, const float* x, const float* gain, float scale, float* dx, float* d_gain,
                             int64_t n);

  void (*gate)(const float* a, const float* b, float* y, int64_t n);  // y = silu(a) * b, silu(a) = a / (1 + exp(-a))
  void (*gate_backward)(const float* dy, const float* a, const float* b, float* da, float* db, int64_t n);

  void (*softmax)(float* x, int64_t n, float scale);  // x <- softmax(x * scale), scale > 0

  // -log softmax(x)[target]; x becomes factor times its gradient, softmax(x) - onehot(target).
  float (*cross_entropy)(float* x, int64_t n, int64_t target, float factor);
};

// Those of the kind that vectors() has chosen.
const RowLoops& row_loops();

}  // namespace minillama
