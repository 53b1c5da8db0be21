// Argument checks shared by all backends: each message says what is wanted and what was given.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace minillama {

inline void check_device(const at::Tensor& tensor, const char* name, c10::DeviceType wanted) {
  TORCH_CHECK(tensor.device().type() == wanted, name, " is on ", tensor.device(), ", and this kernel runs on ",
              c10::DeviceTypeName(wanted, true), ": move it with .to(...)");
}

inline void check_dtype(const at::Tensor& tensor, const char* name, at::ScalarType wanted) {
  TORCH_CHECK(tensor.scalar_type() == wanted, name, " has dtype ", tensor.scalar_type(), ", wanted ", wanted);
}

inline void check_floating(const at::Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name, " has dtype ", dtype,
              ", wanted Float, BFloat16 or Half");
}

// x (..., T, H, d), d even; cos and sin fp32: (T, d/2) for all rows of the batch, or x's batch in front of that.
inline void check_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_floating(x, "x");
  check_dtype(cos, "cos", at::kFloat);
  check_dtype(sin, "sin", at::kFloat);
  TORCH_CHECK(x.dim() >= 3, "x has shape ", x.sizes(), ", wanted (..., T, H, d)");
  const int64_t d = x.size(-1), batch_dims = x.dim() - 3;
  TORCH_CHECK(d % 2 == 0, "x has head width ", d, ", which is odd, and RoPE turns pairs");
  TORCH_CHECK(cos.sizes() == sin.sizes(), "cos has shape ", cos.sizes(), " and sin ", sin.sizes(), ", wanted one");
  const bool fits = cos.dim() >= 2 && cos.size(-2) == x.size(-3) && cos.size(-1) == d / 2;
  const bool shared = cos.dim() == 2;
  const bool per_row = cos.dim() == x.dim() - 1 &&
                       cos.sizes().slice(0, batch_dims) == x.sizes().slice(0, batch_dims);
  TORCH_CHECK(fits && (shared || per_row), "cos has shape ", cos.sizes(), " for x of shape ", x.sizes(),
              ", wanted (T, d/2) = (", x.size(-3), ", ", d / 2, ") or that with x's batch in front");
  TORCH_CHECK(!cos.requires_grad() && !sin.requires_grad(),
              "cos or sin wants a gradient, and this operator has none for the table: use minillama.rope");
}

}  // namespace minillama
