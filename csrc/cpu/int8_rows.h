// Rows of activations as int8 codes, as LLM.int8 (arXiv 2208.07339) has them.
#pragma once

#include <cstdint>
#include <vector>

namespace minillama {

constexpr int64_t kLine = 128;  // columns that are multiplied at a time with a single row of x

// A line of that row, in the order in which the codes of W come out of the registers: two vectors of 64.
struct alignas(64) Int8Line {
  int8_t codes[2][64];
  int32_t taken[2][16];  // what codes of W, being more than they mean, add to the sum of each four
  float scale[2][16];
};

// x (M, columns) -> codes (M, columns), absmax (M) and the columns in which a magnitude reaches the threshold: outliers,
// whose codes are 0, while what is below the threshold in them counts for absmax. The bits of `quantize_rows` in
// minillama/quant/int8.py: code = round(x * (127 * (1 / absmax))), half to even; NaN makes its row's absmax NaN.
void int8_rows(const float* x, int64_t M, int64_t columns, float threshold, std::vector<int8_t>& codes,
               std::vector<float>& absmax, std::vector<int64_t>& outliers);

}  // namespace minillama
