// The product of a GGUF file's q4_0 blocks with one row of x in int8: what decoding multiplies.
#pragma once

#include "gguf_dots.h"

namespace minillama {

// Whether such a product has a loop of its own: q4_0 with AVX-512 VNNI.
bool gguf_has_row(Block block, int64_t M);

// What `gguf_rounded_rows` computes, for one row of x.
void gguf_row(const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y);

}  // namespace minillama
