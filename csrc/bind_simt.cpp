// The CUDA kernels, run by the emulator, as operators on CPU tensors: tensors to pointers, nothing else.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <utility>
#include <vector>

#include "checks.h"
#include "kernel_table.h"

namespace minillama {

using kernels::DType;
using MaybeTensor = std::optional<at::Tensor>;

static const kernels::Table* in_use = minillama_kernels();

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

static DType dtype_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? DType::f32 : x.scalar_type() == at::kHalf ? DType::f16 : DType::bf16;
}

// The kernels read any strides but want the last dimension dense; copies what has it otherwise.
static at::Tensor dense_rows(const at::Tensor& x) { return x.size(-1) > 1 && x.stride(-1) != 1 ? x.contiguous() : x; }

// (batch, head, row, width), in this order of dimensions
static kernels::Strided strided(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

at::Tensor rope_simt(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved) {
  check_rope(x, cos, sin);
  check_device(x, "x", at::kCPU);
  check_device(cos, "cos", at::kCPU);
  check_device(sin, "sin", at::kCPU);
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return out;
  const int64_t tokens = x.size(-3), heads = x.size(-2), width = x.size(-1);
  const at::Tensor in = dense_rows(x.reshape({-1, tokens, heads, width})).transpose(1, 2);  // (batch, head, token, d)
  const at::Tensor c = cos.contiguous(), s = sin.contiguous();
  const Watched watched{{"x", in}, {"cos", c}, {"sin", s}, {"y", out}};
  in_use->rope(dtype_of(x), strided(in), c.const_data_ptr<float>(), s.const_data_ptr<float>(),
                out.mutable_data_ptr(), in.size(0), tokens, heads, width, c.numel() / (width / 2), interleaved, nullptr);
  return out;
}

// The last dimension of x becomes `to` columns; x W^T forward, x W backward.
static at::Tensor nf4_product(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& absmax,
                              const MaybeTensor& scale, const MaybeTensor& offset, int64_t to, int64_t block_size,
                              bool forward) {
  check_floating(x, forward ? "x" : "d_out");
  TORCH_CHECK(x.dim() >= 1, "x has no dimensions, wanted (..., columns of the weight)");
  const int64_t from = x.size(-1), rows = forward ? to : from, columns = forward ? from : to;
  check_nf4(codes, absmax, scale, offset, rows, columns, block_size);
  for (const at::Tensor* tensor : {&x, &codes, &absmax}) check_device(*tensor, "an argument", at::kCPU);
  auto sizes = x.sizes().vec();
  sizes.back() = to;
  at::Tensor out = at::empty(sizes, x.options());
  const at::Tensor in = x.contiguous(), packed = codes.contiguous(), scales = absmax.contiguous();
  const at::Tensor of_scales = scale ? scale->contiguous() : at::Tensor();
  kernels::NF4 w{packed.const_data_ptr<uint8_t>(), nullptr, nullptr, nullptr, nullptr, rows, columns, block_size};
  if (scale) {
    w.absmax_codes = scales.const_data_ptr<uint8_t>();
    w.absmax_scale = of_scales.const_data_ptr<float>();
    w.absmax_offset = offset->const_data_ptr<float>();
  } else {
    w.absmax = scales.const_data_ptr<float>();
  }
  const Watched watched{{"x", in}, {"codes", packed}, {"absmax", scales}, {"absmax_scale", of_scales},
                        {"absmax_offset", scale ? *offset : at::Tensor()}, {"y", out}};
  const auto run = forward ? in_use->nf4_matmul : in_use->nf4_matmul_backward;
  if (out.numel() > 0) run(dtype_of(x), in.const_data_ptr(), w, out.mutable_data_ptr(), out.numel() / to, nullptr);
  return out;
}

at::Tensor nf4_matmul_simt(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& absmax,
                           const MaybeTensor& scale, const MaybeTensor& offset, int64_t out_features,
                           int64_t block_size) {
  return nf4_product(x, codes, absmax, scale, offset, out_features, block_size, true);
}

at::Tensor nf4_matmul_backward_simt(const at::Tensor& d_out, const at::Tensor& codes, const at::Tensor& absmax,
                                    const MaybeTensor& scale, const MaybeTensor& offset, int64_t in_features,
                                    int64_t block_size) {
  return nf4_product(d_out, codes, absmax, scale, offset, in_features, block_size, false);
}

static kernels::AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               bool causal) {
  check_attention(q, k, v, kernels::kMaxHeadWidth);
  check_device(q, "q", at::kCPU);
  check_device(k, "k", at::kCPU);
  check_device(v, "v", at::kCPU);
  const float scale = float(1 / std::sqrt(double(q.size(3))));
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3), scale, causal};
}

std::tuple<at::Tensor, at::Tensor> flash_attention_simt(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                        bool causal) {
  const auto shape = attention_shape(q, k, v, causal);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor lse = at::empty(q.sizes().slice(0, 3), q.options().dtype(at::kFloat));
  const at::Tensor Q = dense_rows(q), K = dense_rows(k), V = dense_rows(v);
  const Watched watched{{"q", Q}, {"k", K}, {"v", V}, {"out", out}, {"lse", lse}};
  in_use->flash_attention(dtype_of(q), strided(Q), strided(K), strided(V), out.mutable_data_ptr(),
                           lse.mutable_data_ptr<float>(), shape, nullptr);
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_attention_backward_simt(
    const at::Tensor& d_out, const at::Tensor& d_lse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, bool causal) {
  const auto shape = attention_shape(q, k, v, causal);
  for (const at::Tensor* tensor : {&d_out, &out}) {
    check_shape(*tensor, "d_out or out", q.sizes());
    check_dtype(*tensor, "d_out or out", q.scalar_type());
  }
  for (const at::Tensor* tensor : {&d_lse, &lse}) {
    check_shape(*tensor, "d_lse or lse", q.sizes().slice(0, 3));
    check_dtype(*tensor, "d_lse or lse", at::kFloat);
  }
  at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  at::Tensor dv = at::empty(v.sizes(), v.options()), delta = at::empty(lse.sizes(), lse.options());
  const at::Tensor Q = dense_rows(q), K = dense_rows(k), V = dense_rows(v), dO = dense_rows(d_out);
  const at::Tensor O = out.contiguous(), L = lse.contiguous(), dL = d_lse.contiguous();
  const Watched watched{{"q", Q}, {"k", K}, {"v", V}, {"d_out", dO}, {"out", O}, {"lse", L}, {"d_lse", dL},
                        {"delta", delta}, {"dq", dq}, {"dk", dk}, {"dv", dv}};
  in_use->flash_attention_backward(dtype_of(q), strided(Q), strided(K), strided(V), strided(dO), O.const_data_ptr(),
                                    L.const_data_ptr<float>(), dL.const_data_ptr<float>(),
                                    delta.mutable_data_ptr<float>(), dq.mutable_data_ptr(), dk.mutable_data_ptr(),
                                    dv.mutable_data_ptr(), shape, nullptr);
  return {dq, dk, dv};
}

}  // namespace minillama

TORCH_LIBRARY_FRAGMENT(minillama_simt, m) {
  m.def("set_schedule(str text) -> ()", [](const std::string& text) { minillama::in_use->set_schedule(text.c_str()); });
  // the address of a kernels::Table of another library, or 0: the kernels of this one
  m.def("use_kernels(int table) -> ()", [](int64_t table) {
    minillama::in_use = table ? reinterpret_cast<const minillama::kernels::Table*>(table) : minillama_kernels();
  });
}

TORCH_LIBRARY_IMPL(minillama_simt, CPU, m) {
  m.impl("rope", &minillama::rope_simt);
  m.impl("nf4_matmul", &minillama::nf4_matmul_simt);
  m.impl("nf4_matmul_backward", &minillama::nf4_matmul_backward_simt);
  m.impl("flash_attention", &minillama::flash_attention_simt);
  m.impl("flash_attention_backward", &minillama::flash_attention_backward_simt);
}
