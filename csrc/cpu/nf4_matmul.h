// Products with a weight kept in NF4, on a CPU: plain loops over pointers, no tensors.
#pragma once

#include <vector>

#include "../cuda/kernels.h"
#include "vectors.h"

namespace minillama {

// Weights [element, element + count) of the flattened weight, level * absmax; absmax of all blocks, decoded.
void nf4_decode(const kernels::NF4& w, const float* absmax, int64_t element, int64_t count, float* out);

// What all tasks of one call read: the weight, its decoded absmax, and the rows (M, from) that are multiplied, in fp32 and
// in the order in which they will be read.
struct NF4Product {
  kernels::NF4 w;
  const float* absmax;  // unused where nf4_matvec multiplies, which decodes it in passing
  int64_t M;
  bool by_matvec;
  std::vector<float> rows;
};

// Whether nf4_matvec is to compute y.
bool nf4_by_matvec(const kernels::NF4& w, int64_t M);

// y (M, rows) = x (M, columns) W^T: x laid out once, then tasks of kNF4Tile rows of W.
constexpr int64_t kNF4Tile = 48;
template <typename Scalar> void nf4_lay_out(NF4Product& product, const Scalar* x);
template <typename Scalar> void nf4_rows(const NF4Product& product, int64_t first, int64_t end, Scalar* y);

// dx (M, columns) = dy (M, rows) W: dy laid out once, then tasks of kPanel columns of W.
template <typename Scalar> void nf4_lay_out_backward(NF4Product& product, const Scalar* dy);
template <typename Scalar> void nf4_columns(const NF4Product& product, int64_t first, int64_t end, Scalar* dx);

}  // namespace minillama
