// CPU kernels as operators: tensors to pointers, work to threads, nothing else.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "cpu/rope.h"

namespace minillama {

// 32768 elements take some 10 microseconds, about what waking a thread costs: no smaller share is given to one.
constexpr int64_t kElementsPerTask = 32768;

template <typename Scalar>
void rope_on_threads(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, at::Tensor& y,
                     bool interleaved) {
  const int64_t heads = x.size(-2), width = x.size(-1), tokens = x.numel() / (heads * width);
  const int64_t tables = cos.numel() / (width / 2);
  const auto* from = x.const_data_ptr<Scalar>();
  const auto *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
  auto* to = y.mutable_data_ptr<Scalar>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (heads * width));
  at::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    rope_cpu<Scalar>(from, c, s, to, begin, end, tables, heads, width, interleaved);
  });
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved) {
  check_rope(x, cos, sin);
  check_device(cos, "cos", at::kCPU);
  check_device(sin, "sin", at::kCPU);
  const auto in = x.contiguous(), c = cos.contiguous(), s = sin.contiguous();
  at::Tensor out = at::empty_like(in);
  if (in.numel() == 0) return out;
  if (x.scalar_type() == at::kFloat) rope_on_threads<float>(in, c, s, out, interleaved);
  if (x.scalar_type() == at::kBFloat16) rope_on_threads<at::BFloat16>(in, c, s, out, interleaved);
  if (x.scalar_type() == at::kHalf) rope_on_threads<at::Half>(in, c, s, out, interleaved);
  return out;
}

}  // namespace minillama

TORCH_LIBRARY_IMPL(minillama, CPU, m) { m.impl("rope", &minillama::rope); }
