// NF4 from numbers and back: the bytes and the bits of minillama/quant/nf4.py, on every CPU.
#pragma once

#include <cstdint>

#include "../cuda/kernels.h"

namespace minillama {

// Blocks [begin, end) of x (n numbers in blocks of block_size, an even number): two codes in a byte, and absmax. A code is
// the level nearest to x * (1 / absmax), the lower of two; an odd last number is paired with the code of 0. NaN makes its
// block's absmax NaN, and infinity makes it infinite: the codes of both mean nothing.
template <typename Scalar>
void nf4_quantize(const Scalar* x, int64_t n, int64_t block_size, int64_t begin, int64_t end, uint8_t* codes, float* absmax);

// Numbers [begin, end) of the flattened weight, level * absmax, rounded once where Scalar is narrower than fp32; begin is
// even, absmax decoded.
template <typename Scalar>
void nf4_dequantize(const kernels::NF4& w, const float* absmax, int64_t begin, int64_t end, Scalar* out);

}  // namespace minillama
