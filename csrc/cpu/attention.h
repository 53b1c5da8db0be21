// Attention on a processor, forward and backward, tile by tile: plain loops over pointers, no tensors.
#pragma once

#include <cstdint>

#include "../cuda/kernels.h"

namespace minillama {

using kernels::AttentionMask;

// What all tasks of a call read.
struct AttentionInputs {
  kernels::DType dtype;
  kernels::Strided q, k, v;
  AttentionMask mask;
  kernels::AttentionShape shape;
};

constexpr int64_t kWidestHead = 512;  // what a task keeps of a tile then still stays in the second cache

// Contiguous: out (B, H, T, d), lse (B, H, T), and for the gradients rows (B, H, T, 2), a query's highest score before the
// scale and its sum of exponentials below that.
struct AttentionResults {
  void* out;
  float *lse, *rows;
};

// Tasks [begin, end) of as many as there are tiles of queries.
int64_t attention_tiles(const kernels::AttentionShape& shape);
void attention_forward(const AttentionInputs& inputs, const AttentionResults& results, int64_t begin, int64_t end);

// Gradients of the same: results like q, k and v, contiguous. d_out by its strides, the others contiguous; d_lse may be
// null.
struct AttentionGradients {
  kernels::Strided d_out;
  const void* out;
  const float *rows, *d_lse;
  void *dq, *dk, *dv;
};

// Tasks [begin, end) of B K: each has a head of keys and values and all queries that read it.
void attention_backward(const AttentionInputs& inputs, const AttentionGradients& gradients, int64_t begin, int64_t end);

}  // namespace minillama
