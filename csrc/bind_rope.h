// RoPE's three operators, the same for processors and GPUs: checks, results, pointers. Who includes this turns the heads,
// in `turn_heads`: bind_cpu.cpp by the CPU kernel, bind_kernels.h by the CUDA kernels.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <utility>

#include "checks.h"
#include "cuda/kernels.h"

namespace minillama {

using MaybeTensor = std::optional<at::Tensor>;

// What one call turns, (B, T, H, d), and where the results go; table and positions are contiguous.
struct RopeTensors {
  at::Tensor q, k, q_out, k_out, table, positions;  // positions: undefined where there are none
};

static void turn_heads(const RopeTensors& tensors, const kernels::RopeTable& table, const kernels::RopeShape& shape);

static kernels::DType dtype_of(const at::Tensor& x) {
  using kernels::DType;
  return x.scalar_type() == at::kFloat ? DType::f32 : x.scalar_type() == at::kHalf ? DType::f16 : DType::bf16;
}

// The kernels read any strides but want the last dimension dense; copies what has it otherwise.
static at::Tensor dense_rows(const at::Tensor& x) { return x.size(-1) > 1 && x.stride(-1) != 1 ? x.contiguous() : x; }

static kernels::RopeRows rope_rows(const at::Tensor& x, const at::Tensor& y) {
  return {{x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(1)},
          y.mutable_data_ptr(), y.stride(0), y.stride(2), y.stride(1), x.size(2)};
}

static void turn(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out, const at::Tensor& k_out,
                 const at::Tensor& rotations, const MaybeTensor& positions, int64_t offset, bool interleaved,
                 bool inverse) {
  const int64_t batch = q.size(0), tokens = q.size(1);
  if (q.numel() + k.numel() == 0) return;
  const RopeTensors tensors{dense_rows(q), dense_rows(k), q_out, k_out, rotations.contiguous(),
                            positions ? positions->contiguous() : at::Tensor()};
  const bool own_rows = positions ? positions->dim() == 2 : rotations.dim() == 4;  // for every row of the batch
  const int64_t half = rotations.size(-2), rows = rotations.dim() == 4 ? batch * tokens : rotations.size(0);
  const kernels::RopeTable table{tensors.table.const_data_ptr<float>(),
                                 positions ? tensors.positions.const_data_ptr<int64_t>() : nullptr,
                                 rows, half, own_rows ? tokens : 0, offset};
  turn_heads(tensors, table, {batch, tokens, q.size(3), interleaved, inverse});
}

// What was saved for a backward pass and then written over is to be noticed there.
static void tell_autograd(const at::Tensor& written) { written.unsafeGetTensorImpl()->bump_version(); }

static std::tuple<at::Tensor, at::Tensor> rope(const at::Tensor& q, const at::Tensor& k, const at::Tensor& rotations,
                                               const MaybeTensor& positions, int64_t offset, bool interleaved,
                                               bool inverse) {
  check_rope(q, k, rotations, positions, offset);
  at::Tensor q_out = at::empty(q.sizes(), q.options()), k_out = at::empty(k.sizes(), k.options());
  turn(q, k, q_out, k_out, rotations, positions, offset, interleaved, inverse);
  return {q_out, k_out};
}

static void rope_in_place(const at::Tensor& q, const at::Tensor& k, const at::Tensor& rotations,
                          const MaybeTensor& positions, int64_t offset, bool interleaved, bool inverse) {
  check_rope(q, k, rotations, positions, offset);
  check_written(q, "q");
  check_written(k, "k");
  at::assert_no_overlap(q, k);
  turn(q, k, q, k, rotations, positions, offset, interleaved, inverse);
  tell_autograd(q);
  tell_autograd(k);
}

static void rope_into(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out, const at::Tensor& k_out,
                      const at::Tensor& rotations, const MaybeTensor& positions, int64_t offset, bool interleaved,
                      bool inverse) {
  check_rope(q, k, rotations, positions, offset);
  TORCH_CHECK(!(at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad())),
              "q or k wants a gradient, which does not pass through given results: use the operator `rope`");
  for (const auto& [name, x, out] : {std::tuple("q_out", q, q_out), std::tuple("k_out", k, k_out)}) {
    check_shape(out, name, x.sizes());
    check_dtype(out, name, x.scalar_type());
    TORCH_CHECK(out.device() == x.device(), name, " is on ", out.device(), ", and its input on ", x.device());
    check_written(out, name);
    at::assert_no_overlap(out, q);
    at::assert_no_overlap(out, k);
  }
  at::assert_no_overlap(q_out, k_out);
  turn(q, k, q_out, k_out, rotations, positions, offset, interleaved, inverse);
  tell_autograd(q_out);
  tell_autograd(k_out);
}

static void implement_rope(torch::Library& m) {
  m.impl("rope", &rope);
  m.impl("rope_", &rope_in_place);
  m.impl("rope_into", &rope_into);
}

}  // namespace minillama
