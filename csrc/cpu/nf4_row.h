// y = W x for a W in NF4 and a single row of x in int8: what decoding multiplies.
#pragma once

#include "nf4_int8.h"

namespace minillama {

// Whether such a product has a loop of its own: with AVX-512 VNNI.
bool nf4_has_row(int64_t M);

// That row in whole lines, of its codes, scales and offsets.
void nf4_row_lay_out(NF4Int8Rows& rows);

// What `nf4_int8_rows` computes, for one row of x: the same bits as beside others.
void nf4_row(const kernels::NF4& w, const NF4Int8Rows& x, int64_t begin, int64_t end, float* y);

}  // namespace minillama
