// A weight matrix in any of the forms in which a model stores it, and its product with a few rows of activations.
#pragma once

#include <cstdint>
#include <vector>

#include "../cuda/kernels.h"
#include "gguf_dots.h"
#include "nf4_int8.h"

namespace minillama {

// nf4_int8: NF4, with activations in int8; blocks: those of a GGUF file, and with activations in int8
enum class Form { f32, bf16, f16, nf4, nf4_int8, int8, blocks, blocks_int8 };

// W (rows, columns), row after row, where it lies in the model's memory: nothing is copied. What its form does not use is
// left 0.
struct Matrix {
  Form form;
  int64_t rows, columns;
  const void* values;  // f32, bf16 and f16: the numbers; int8: the codes; blocks: their bytes
  const float* absmax;  // int8: of each row
  float threshold;  // int8: from this size on a number of x makes its column an outlier
  kernels::NF4 nf4;
  Block block;  // blocks: of which type
};

constexpr int64_t kMostRows = 8;

// What one thread is given at least: some 10 microseconds of reading, about what waking it costs.
constexpr int64_t kWeightsPerTask = 65536;

// Rows x (n, columns) in fp32, n from 1 to kMostRows, with what the products of some forms need of them besides: it is
// made once, by `prepare`, and read by all threads.
struct Activations {
  const float* x;
  int64_t n;
  std::vector<float> in_code_order;  // nf4: see nf4_matvec.h
  NF4Int8Rows rounded;  // nf4_int8
  std::vector<int8_t> codes;  // int8: (n, columns), 0 in the columns of outliers
  std::vector<float> absmax;  // int8: (n)
  std::vector<int64_t> outliers;  // int8: columns that are multiplied in fp32
  GGUFRows in_parts;  // blocks_int8
};

// Lays out rows for products with w, and with every matrix of its form, columns and threshold. The memory of `to` is used
// again.
void prepare(const Matrix& w, const float* x, int64_t n, Activations& to);

// y[m, r] = sum over k of W[r, k] x[m, k] for rows [first, end) of W, all rows m of x; y is (n, rows), sums are fp32. The
// bits of a row do not depend on where first and end lie.
void multiply_rows(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y);

// out[m, k] = sum over r of weights[m, r] W[r, k] for rows [first, end) of W in f32, bf16 or f16; weights lie `apart`
// numbers apart, out is (n, columns).
void combine_rows(const Matrix& w, const float* weights, int64_t apart, int64_t n, int64_t first, int64_t end, float* out);

// Row `row` of a matrix in f32, bf16, f16 or blocks, as fp32.
void read_row(const Matrix& w, int64_t row, float* out);

}  // namespace minillama
