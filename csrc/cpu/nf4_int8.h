// y = x W^T for a W in NF4 and few rows of x, with x and the levels rounded to int8: sums of integers in each block.
#pragma once

#include <cstdint>
#include <vector>

#include "../cuda/kernels.h"
#include "int8_rows.h"

namespace minillama {

// Levels are rounded to whole 112ths: of all divisors up to 127 the one whose 16 roundings have the least squares, 0.0017
// on average, where an even step of 127ths leaves 0.0022 (and NF4 itself is off by 0.09 of a weight). Rounding x to its
// piece's 127ths costs more, 0.006 of a weight's part in y.
constexpr int kNF4Int8Step = 112;
constexpr int8_t kNF4Int8Levels[16] = {-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112};

// Rows of x in int8, piece by piece of kNF4Piece columns: x = code * scale, scale = the piece's largest size / 127.
struct NF4Int8Rows {
  int64_t M, columns;
  std::vector<int8_t> codes;     // (M, pieces, 64): of a piece first the odd columns, then the even ones
  std::vector<float> scales;     // (M, pieces)
  std::vector<int32_t> offsets;  // (M, pieces): -112 times the sum of the codes
  std::vector<Int8Line> lines;   // of a single row, with VNNI: two pieces each
};

// Whether a weight's blocks and rows are whole pieces: others have no product of this kind.
bool nf4_int8_fits(const kernels::NF4& w);

void nf4_int8_lay_out(const float* x, int64_t M, int64_t columns, NF4Int8Rows& rows);

// y[m, n - begin] = sum over pieces of absmax * scale * (sum of level * code) / 112 for rows [begin, end) of W, rows of y
// `y_row` apart; a level is rounded to a multiple of 1/112, the inner sums are exact.
void nf4_int8_rows(const kernels::NF4& w, const NF4Int8Rows& x, int64_t begin, int64_t end, float* y, int64_t y_row);

}  // namespace minillama
