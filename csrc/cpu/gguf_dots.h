// y = W x^T for a W in the blocks of a GGUF file and few rows of x: with x in fp32, or rounded to int8 in parts of 32.
#pragma once

#include <cstdint>
#include <vector>

#include "gguf_row.h"

namespace minillama {

// Rows of x in int8, in parts of kPart columns: x = code * scale, scale = the part's largest size / 127.
struct GGUFRows {
  int64_t M, columns;
  std::vector<int8_t> codes;   // (M, columns)
  std::vector<float> scales;   // (M, columns / kPart), and one more
  std::vector<int32_t> fours;  // (M, columns / 4): minus the sum of each four codes
  std::vector<Int8Line> lines;  // of a single row, where `gguf_has_row`
};

// Rows for products with blocks of that type.
void gguf_lay_out(Block block, const float* x, int64_t M, int64_t columns, GGUFRows& rows);

// y[m, r - begin] = sum over parts of scale of W * scale of x * (sum of code * code) for rows [begin, end) of W, rows of y
// `y_row` apart; the inner sums are exact, of 16 columns in q6_k and of 32 in the others.
void gguf_rounded_rows(Block block, const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y, int64_t y_row);

}  // namespace minillama
