// The absmax values of an NF4 weight, decoded where they are in double quantization.
#pragma once

#include "../cuda/kernels.h"

namespace minillama {

// Of blocks [begin, end), to absmax[0 ... end - begin): the same bits with every kind of loops.
void nf4_absmax(const kernels::NF4& w, int64_t begin, int64_t end, float* absmax);

// Of each piece of rows [first, first + rows) of W, where pieces divide its rows and its blocks.
void nf4_absmax_of_rows(const kernels::NF4& w, int64_t first, int64_t rows, int64_t piece, float* absmax);

}  // namespace minillama
