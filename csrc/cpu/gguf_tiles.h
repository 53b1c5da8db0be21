// Products of a GGUF file's blocks with many rows of x in int8, on the register tiles of int8_tiles.h.
#pragma once

#include "gguf_dots.h"

namespace minillama {

// Whether a product of M rows of x may run on tiles: where int8's may, and columns are whole groups of 64.
bool gguf_has_tiles(int64_t M, int64_t columns);

// What `gguf_rounded_rows` computes; each block is read once, and unpacked once for all rows of x.
void gguf_rows_by_tiles(Block block, const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y, int64_t y_row);

}  // namespace minillama
