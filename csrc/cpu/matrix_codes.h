// Products with matrices whose numbers are codes; matrix.h is their door and says what they compute.
#pragma once

#include "matrix.h"

namespace minillama {

void prepare_nf4(const Matrix& w, Activations& to);
void multiply_nf4(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y);

// LLM.int8 (arXiv 2208.07339) as minillama/quant/int8.py computes it: codes and absmax of the rows of x, and the columns
// in which any row reaches the threshold, which are left out of all codes.
void prepare_int8(const Matrix& w, Activations& to);
void multiply_int8(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y);

// Rows in a GGUF file's blocks: each is read as fp32, then multiplied as one that was kept so.
void multiply_blocks(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y);
void read_blocks(const Matrix& w, int64_t row, float* out);

}  // namespace minillama
