// The kernels as operators: tensors to pointers, nothing else. bind_simt.cpp and bind_cuda.cpp include this after they
// have said whose kernels these are (`in_use`), where they run (`kDevice`) and on which stream (`stream_of`).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "bind_mask.h"
#include "bind_nf4.h"
#include "bind_rope.h"

namespace minillama {

using kernels::DType;

// All on the device that these kernels run on, and on the same one; an undefined tensor is an absent argument.
static void check_together(std::initializer_list<std::pair<const char*, at::Tensor>> tensors) {
  const at::Device device = tensors.begin()->second.device();
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) continue;
    check_device(tensor, name, kDevice);
    TORCH_CHECK(tensor.device() == device, name, " is on ", tensor.device(), " and ", tensors.begin()->first, " on ",
                device, ": move them to one device");
  }
}

// While it lives, the profiler knows these tensors' memory; in the ordinary build nobody listens.
class Watched {
 public:
  Watched(std::initializer_list<std::pair<const char*, at::Tensor>> tensors) {
    for (const auto& [name, tensor] : tensors) {
      if (!tensor.defined() || tensor.numel() == 0) continue;
      int64_t last = 0;  // distance to the last element, by the strides
      for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
      in_use->watch(tensor.const_data_ptr(), size_t(last + 1) * tensor.element_size(), name);
      pointers_.push_back(tensor.const_data_ptr());
    }
  }
  ~Watched() {
    for (const void* pointer : pointers_) in_use->forget(pointer);
  }

 private:
  std::vector<const void*> pointers_;
};

// (batch, head, row, width), in this order of dimensions
static kernels::Strided strided(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

static void turn_heads(const RopeTensors& t, const kernels::RopeTable& table, const kernels::RopeShape& shape) {
  check_together({{"q", t.q}, {"k", t.k}, {"k's results", t.k_out}, {"rotations", t.table}, {"positions", t.positions}});
  const c10::DeviceGuard guard(t.q.device());
  const Watched watched{{"q", t.q}, {"k", t.k}, {"rotations", t.table}, {"positions", t.positions},
                        {"q's results", t.q_out}, {"k's results", t.k_out}};
  in_use->rope(dtype_of(t.q), rope_rows(t.q, t.q_out), rope_rows(t.k, t.k_out), table, shape, stream_of(t.q));
}

static void multiply(const NF4Tensors& t, const kernels::NF4& w, bool forward) {
  check_together({{"x", t.x}});
  const c10::DeviceGuard guard(t.x.device());
  const Watched watched{{"x", t.x}, {"codes", t.codes}, {"absmax", t.absmax}, {"absmax_scale", t.absmax_scale},
                        {"absmax_offset", t.absmax_offset}, {"y", t.out}};
  const auto run = forward ? in_use->nf4_matmul : in_use->nf4_matmul_backward;
  const int64_t M = t.out.numel() / t.out.size(-1);
  run(dtype_of(t.x), t.x.const_data_ptr(), w, t.out.mutable_data_ptr(), M, stream_of(t.x));
}

static kernels::AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               bool causal) {
  check_attention(q, k, v, kernels::kMaxHeadWidth);
  check_together({{"q", q}, {"k", k}, {"v", v}});
  const double rows = double(q.size(0)) * std::max(double(q.size(1)) * double(q.size(2) + kernels::kDeltaRows - 1),
                                                   double(k.size(1)) * double(k.size(2) + kernels::kDeltaRows - 1));
  TORCH_CHECK(rows <= double(kernels::kMaxBlocks) * kernels::kDeltaRows, "q has shape ", q.sizes(), " and k ", k.sizes(),
              ": more than the 2^31 - 1 blocks of ", kernels::kDeltaRows, " rows that a launch has: split the batch");
  const float scale = float(1 / std::sqrt(double(q.size(3))));
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3), scale, causal};
}

// A mask as the kernels take it: its bools by their strides, and room for their bits.
struct MaskTensors {
  at::Tensor bools, bits;
  kernels::AttentionMask by_strides = {};

  MaskTensors(const std::optional<at::Tensor>& mask, const at::Tensor& q, const kernels::AttentionShape& shape) {
    if (!mask) return;
    bools = spread_mask(*mask, shape.batch, shape.queries, shape.keys, kDevice);
    check_together({{"q", q}, {"mask", bools}});
    bits = at::empty({shape.batch, kernels::mask_words(shape.keys), shape.queries}, q.options().dtype(at::kInt));
    by_strides = {bools.const_data_ptr<bool>(), bools.stride(0), bools.stride(1)};
  }
  unsigned* words() const { return bits.defined() ? static_cast<unsigned*>(bits.mutable_data_ptr()) : nullptr; }
};

static std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_attention(const at::Tensor& q, const at::Tensor& k,
                                                                      const at::Tensor& v, bool causal,
                                                                      const std::optional<at::Tensor>& mask) {
  const auto shape = attention_shape(q, k, v, causal);
  const c10::DeviceGuard guard(q.device());
  const MaskTensors seen(mask, q, shape);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor lse = at::empty(q.sizes().slice(0, 3), q.options().dtype(at::kFloat));
  at::Tensor rows = at::empty({q.size(0), q.size(1), q.size(2), 2}, lse.options());
  const at::Tensor Q = dense_rows(q), K = dense_rows(k), V = dense_rows(v);
  const Watched watched{{"q", Q}, {"k", K}, {"v", V}, {"mask", seen.bools}, {"bits of the mask", seen.bits},
                        {"out", out}, {"lse", lse}, {"rows", rows}};
  in_use->flash_attention(dtype_of(q), strided(Q), strided(K), strided(V), seen.by_strides, seen.words(),
                          out.mutable_data_ptr(), lse.mutable_data_ptr<float>(), rows.mutable_data_ptr<float>(), shape,
                          stream_of(q));
  return {out, lse, rows};
}

static std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_attention_backward(
    const at::Tensor& d_out, const at::Tensor& d_lse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& rows, bool causal, const std::optional<at::Tensor>& mask) {
  const auto shape = attention_shape(q, k, v, causal);
  check_together({{"q", q}, {"d_out", d_out}, {"d_lse", d_lse}, {"out", out}, {"rows", rows}});
  const c10::DeviceGuard guard(q.device());
  for (const at::Tensor* tensor : {&d_out, &out}) {
    check_shape(*tensor, "d_out or out", q.sizes());
    check_dtype(*tensor, "d_out or out", q.scalar_type());
  }
  check_shape(d_lse, "d_lse", q.sizes().slice(0, 3));
  check_shape(rows, "rows", {q.size(0), q.size(1), q.size(2), 2});
  for (const at::Tensor* tensor : {&d_lse, &rows}) check_dtype(*tensor, "d_lse or rows", at::kFloat);
  const MaskTensors seen(mask, q, shape);
  at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  at::Tensor dv = at::empty(v.sizes(), v.options()), delta = at::empty(d_lse.sizes(), d_lse.options());
  const at::Tensor Q = dense_rows(q), K = dense_rows(k), V = dense_rows(v), dO = dense_rows(d_out);
  const at::Tensor O = out.contiguous(), R = rows.contiguous(), dL = d_lse.contiguous();
  const bool halves = q.element_size() == 2;  // may go to tensor cores
  const at::Tensor sums = at::empty({halves ? kernels::gradient_sums(shape) : 0}, d_lse.options());
  const at::Tensor turns = at::zeros({halves ? kernels::gradient_turns(shape) : 0}, q.options().dtype(at::kInt));
  const Watched watched{{"q", Q}, {"k", K}, {"v", V}, {"d_out", dO}, {"out", O}, {"rows", R}, {"d_lse", dL},
                        {"mask", seen.bools}, {"bits of the mask", seen.bits}, {"delta", delta}, {"sums", sums}, {"turns", turns},
                        {"dq", dq}, {"dk", dk}, {"dv", dv}};
  in_use->flash_attention_backward(dtype_of(q), strided(Q), strided(K), strided(V), strided(dO), seen.by_strides,
                                   seen.words(), O.const_data_ptr(), R.const_data_ptr<float>(),
                                   dL.const_data_ptr<float>(), delta.mutable_data_ptr<float>(),
                                   sums.mutable_data_ptr<float>(), static_cast<unsigned*>(turns.mutable_data_ptr()),
                                   dq.mutable_data_ptr(), dk.mutable_data_ptr(), dv.mutable_data_ptr(), shape,
                                   stream_of(q));
  return {dq, dk, dv};
}

}  // namespace minillama

#include "bind_decoding.h"

namespace minillama {

static void implement(torch::Library& m) {
  implement_rope(m);
  implement_nf4(m);
  m.impl("flash_attention", &flash_attention);
  m.impl("flash_attention_backward", &flash_attention_backward);
  m.impl("flash_decoding", &flash_decoding);
  m.impl("flash_decoding_append", &flash_decoding_append);
}

}  // namespace minillama
