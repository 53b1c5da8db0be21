// Dot products of rows of int8 codes, exact.
#pragma once

#include <cstdint>
#include <vector>

namespace minillama {

// sums[r * M + m] = sum over k of w[r * columns + k] x[m * columns + k] for `rows` rows of w and M of x: the same integers
// with every kind of loops, whatever the number of columns. x holds no -128.
void int8_dots(const int8_t* w, int64_t rows, const int8_t* x, int64_t M, int64_t columns, int64_t* sums);

}  // namespace minillama
