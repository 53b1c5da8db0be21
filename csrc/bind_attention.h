// Attention as operators for processors: checks, results, pointers, work to threads. Used by bind_cpu.cpp.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "bind_mask.h"
#include "bind_rope.h"
#include "checks.h"
#include "cpu/attention.h"

namespace minillama {

// Tensors that a call reads, alive as long as its pointers are used.
struct AttentionTensors {
  at::Tensor q, k, v, mask;
  AttentionInputs inputs;
};

// (batch, head, row, width), in this order of dimensions
static kernels::Strided by_strides(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

static AttentionTensors attention_tensors(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                                          const std::optional<at::Tensor>& mask) {
  check_attention(q, k, v, kWidestHead);
  for (const auto& [name, tensor] : {std::pair("q", q), std::pair("k", k), std::pair("v", v)})
    check_device(tensor, name, at::kCPU);
  AttentionTensors t{dense_rows(q), dense_rows(k), dense_rows(v), {}, {}};
  const int64_t B = q.size(0), T = q.size(2), S = k.size(2);
  if (mask) t.mask = spread_mask(*mask, B, T, S, at::kCPU);
  const float scale = float(1 / std::sqrt(double(q.size(3))));
  t.inputs = {dtype_of(q), by_strides(t.q), by_strides(t.k), by_strides(t.v), {},
              {B, q.size(1), k.size(1), T, S, q.size(3), scale, causal}};
  if (mask) t.inputs.mask = {t.mask.const_data_ptr<bool>(), t.mask.stride(0), t.mask.stride(1)};
  return t;
}

static std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_cpu(const at::Tensor& q, const at::Tensor& k,
                                                                    const at::Tensor& v, bool causal,
                                                                    const std::optional<at::Tensor>& mask) {
  const AttentionTensors t = attention_tensors(q, k, v, causal, mask);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor lse = at::empty(q.sizes().slice(0, 3), q.options().dtype(at::kFloat));
  at::Tensor rows = at::empty({q.size(0), q.size(1), q.size(2), 2}, lse.options());
  const AttentionResults results{out.mutable_data_ptr(), lse.mutable_data_ptr<float>(), rows.mutable_data_ptr<float>()};
  at::parallel_for(0, attention_tiles(t.inputs.shape), 1, [&](int64_t begin, int64_t end) {
    attention_forward(t.inputs, results, begin, end);
  });
  return {out, lse, rows};
}

static std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_cpu_backward(
    const at::Tensor& d_out, const at::Tensor& d_lse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& rows, bool causal, const std::optional<at::Tensor>& mask) {
  const AttentionTensors t = attention_tensors(q, k, v, causal, mask);
  for (const at::Tensor* tensor : {&d_out, &out}) {
    check_shape(*tensor, "d_out or out", q.sizes());
    check_dtype(*tensor, "d_out or out", q.scalar_type());
  }
  check_shape(d_lse, "d_lse", q.sizes().slice(0, 3));
  check_shape(rows, "rows", {q.size(0), q.size(1), q.size(2), 2});
  for (const at::Tensor* tensor : {&d_lse, &rows}) check_dtype(*tensor, "d_lse or rows", at::kFloat);
  at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  at::Tensor dv = at::empty(v.sizes(), v.options());
  const at::Tensor dO = dense_rows(d_out), O = out.contiguous(), R = rows.contiguous(), dL = d_lse.contiguous();
  const AttentionGradients gradients{by_strides(dO), O.const_data_ptr(), R.const_data_ptr<float>(),
                                     dL.const_data_ptr<float>(), dq.mutable_data_ptr(), dk.mutable_data_ptr(),
                                     dv.mutable_data_ptr()};
  at::parallel_for(0, q.size(0) * k.size(1), 1, [&](int64_t begin, int64_t end) {
    attention_backward(t.inputs, gradients, begin, end);
  });
  return {dq, dk, dv};
}

static void implement_attention(torch::Library& m) {
  m.impl("flash_attention", &attention_cpu);
  m.impl("flash_attention_backward", &attention_cpu_backward);
}

}  // namespace minillama
