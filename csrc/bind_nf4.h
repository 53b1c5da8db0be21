// The two operators of NF4 products, the same for processors and GPUs: checks, results, pointers. Who includes this
// multiplies, in `multiply`: bind_cpu.cpp by the CPU kernel, bind_kernels.h by the CUDA kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

#include "checks.h"
#include "cuda/kernels.h"

namespace minillama {

// All contiguous; the last two are undefined without double quantization.
struct NF4Tensors {
  at::Tensor x, codes, absmax, absmax_scale, absmax_offset, out;
};

// out = x W^T, or x W where not forward; neither is empty.
static void multiply(const NF4Tensors& tensors, const kernels::NF4& w, bool forward);
using Multiply = decltype(&multiply);

// The last dimension of x becomes `to` columns.
static at::Tensor nf4_product(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& absmax,
                              const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& offset, int64_t to,
                              int64_t block_size, bool forward, Multiply run = &multiply) {
  check_floating(x, forward ? "x" : "d_out");
  TORCH_CHECK(x.dim() >= 1, "x has no dimensions, wanted (..., columns of the weight)");
  const int64_t from = x.size(-1), rows = forward ? to : from, columns = forward ? from : to;
  check_nf4(codes, absmax, scale, offset, rows, columns, block_size);
  for (const auto* part : {&codes, &absmax, scale ? &*scale : &codes, offset ? &*offset : &codes})
    TORCH_CHECK(part->device() == x.device(), "x is on ", x.device(), " and a part of the weight on ", part->device(),
                ": move them to one device");
  auto sizes = x.sizes().vec();
  sizes.back() = to;
  const at::Tensor none;
  const NF4Tensors tensors{x.contiguous(), codes.contiguous(), absmax.contiguous(), scale ? scale->contiguous() : none,
                           offset ? *offset : none, at::empty(sizes, x.options())};
  kernels::NF4 w{tensors.codes.const_data_ptr<uint8_t>(), nullptr, nullptr, nullptr, nullptr, rows, columns, block_size};
  if (scale) {
    w.absmax_codes = tensors.absmax.const_data_ptr<uint8_t>();
    w.absmax_scale = tensors.absmax_scale.const_data_ptr<float>();
    w.absmax_offset = offset->const_data_ptr<float>();
  } else {
    w.absmax = tensors.absmax.const_data_ptr<float>();
  }
  if (tensors.out.numel() > 0) run(tensors, w, forward);
  return tensors.out;
}

static at::Tensor nf4_matmul(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& absmax,
                             const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& offset,
                             int64_t out_features, int64_t block_size) {
  return nf4_product(x, codes, absmax, scale, offset, out_features, block_size, true);
}

static at::Tensor nf4_matmul_backward(const at::Tensor& d_out, const at::Tensor& codes, const at::Tensor& absmax,
                                      const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& offset,
                                      int64_t in_features, int64_t block_size) {
  return nf4_product(d_out, codes, absmax, scale, offset, in_features, block_size, false);
}

static void implement_nf4(torch::Library& m) {
  m.impl("nf4_matmul", &nf4_matmul);
  m.impl("nf4_matmul_backward", &nf4_matmul_backward);
}

}  // namespace minillama
