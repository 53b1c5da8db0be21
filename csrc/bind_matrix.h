// A model's weight as the loops in cpu/ read it: its tensors, kept alive, and the pointers into them.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <string>
#include <vector>

#include "cpu/matrix.h"

namespace minillama {

// torch.classes.minillama.Matrix(form, parts, rows, columns, setting). Forms: "plain" (parts: the matrix in fp32, bf16 or
// fp16), "nf4" (codes, absmax and, with double quantization, absmax_scale and absmax_offset; setting: the block size),
// "int8" (codes, absmax; setting: the threshold), "q4_0", "q8_0" and "q6_k" (the bytes of a GGUF file, a row of them for
// each row; setting: 8 for activations in int8). The tensors are read where they are, and must be contiguous.
struct WeightMatrix : torch::CustomClassHolder {
  WeightMatrix(const std::string& form, std::vector<at::Tensor> parts, int64_t rows, int64_t columns, double setting);
  // W x for rows x (n, columns) in fp32, n from 1 to kMostRows: (n, rows).
  at::Tensor product(const at::Tensor& x) const;
  // W (rows, columns) in fp32, of a form that holds plain numbers or blocks.
  at::Tensor read() const;

  std::vector<at::Tensor> parts;
  Matrix matrix{};
};

// What a tensor's numbers are, and RuntimeError unless they are fp32, bf16 or fp16.
Form form_of(const at::Tensor& tensor, const char* name);

}  // namespace minillama
