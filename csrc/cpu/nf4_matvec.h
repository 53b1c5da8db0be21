// y = x W^T for a W in NF4 and few rows of x: exact, fp32, in one pass over the codes.
#pragma once

#include <vector>

#include "../cuda/kernels.h"

namespace minillama {

constexpr int64_t kNF4Piece = 64;     // weights that this file takes as one: they lie in one block of one row
constexpr int64_t kMatvecRows = 16;   // rows of x for which reading and decoding W is most of the work
constexpr int64_t kMatvecChunk = 128;  // weights of a 64-byte line

// Whether the loops in use can read this weight as pieces: else the general loops of nf4_matmul.cpp multiply it.
bool nf4_has_pieces(const kernels::NF4& w);

// x (M, columns) in the order in which the codes come out of a register.
void nf4_matvec_lay_out(const float* x, int64_t M, int64_t columns, std::vector<float>& out);

// y[m, n - begin] for rows [begin, end) of W, rows of y `y_row` apart; x as laid out for the loops that are in use. A row
// of y has the same bits whatever the other rows of x are.
void nf4_matvec(const kernels::NF4& w, const std::vector<float>& x, int64_t M, int64_t begin, int64_t end, float* y,
                int64_t y_row);

}  // namespace minillama
