// The product of a GGUF file's blocks with one row of x in int8: what decoding multiplies.
#pragma once

#include <cstdint>
#include <vector>

#include "gguf_rows.h"
#include "int8_rows.h"

namespace minillama {

// Whether such a product has a loop of its own: with AVX-512 VNNI.
bool gguf_has_row(int64_t M);

// codes, minus the sum of each four, and the scale of each part of a row of x, in lines for blocks of that type.
void gguf_row_lay_out(Block block, const int8_t* codes, const int32_t* fours, const float* scales, int64_t columns,
                      std::vector<Int8Line>& lines);

// What `gguf_rounded_rows` computes, for one row of x.
void gguf_row(Block block, const uint8_t* w, const std::vector<Int8Line>& x, int64_t columns, int64_t begin, int64_t end,
              float* y);

}  // namespace minillama
