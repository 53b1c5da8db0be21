// Argument checks shared by all backends: each message says what is wanted and what was given.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

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

// A weight (rows, columns) in NF4: ceil(n / 2) bytes of codes; ceil(n / block_size) absmax values in fp32, or uint8 codes
// of them with one fp32 scale for each 256 and an fp32 offset.
inline void check_nf4(const at::Tensor& codes, const at::Tensor& absmax, const std::optional<at::Tensor>& scale,
                      const std::optional<at::Tensor>& offset, int64_t rows, int64_t columns, int64_t block_size) {
  TORCH_CHECK(rows >= 0 && columns >= 0, "a weight of shape (", rows, ", ", columns, ") does not exist");
  TORCH_CHECK(block_size >= 2 && block_size % 2 == 0, "block_size ", block_size, " is not allowed: use an even number");
  const int64_t n = rows * columns, blocks = (n + block_size - 1) / block_size;
  check_dtype(codes, "codes", at::kByte);
  TORCH_CHECK(codes.numel() == (n + 1) / 2, "codes holds ", codes.numel(), " bytes, wanted ", (n + 1) / 2,
              " for a weight of shape (", rows, ", ", columns, ")");
  TORCH_CHECK(absmax.numel() == blocks, "absmax holds ", absmax.numel(), " values, wanted ", blocks, " for ", n,
              " weights in blocks of ", block_size);
  TORCH_CHECK(scale.has_value() == offset.has_value(), "absmax_scale and absmax_offset belong together: give both");
  check_dtype(absmax, "absmax", scale ? at::kByte : at::kFloat);
  if (!scale) return;
  check_dtype(*scale, "absmax_scale", at::kFloat);
  check_dtype(*offset, "absmax_offset", at::kFloat);
  TORCH_CHECK(scale->numel() == (blocks + 255) / 256 && offset->numel() == 1, "absmax_scale holds ", scale->numel(),
              " values and absmax_offset ", offset->numel(), ", wanted ", (blocks + 255) / 256, " and 1");
}

// q (B, H, T, d), k and v (B, K, S, d), H a multiple of K.
inline void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t widest) {
  check_floating(q, "q");
  check_dtype(k, "k", q.scalar_type());
  check_dtype(v, "v", q.scalar_type());
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "q has shape ", q.sizes(), " and k ", k.sizes(),
              ", wanted (B, H, T, d) and (B, K, S, d)");
  TORCH_CHECK(k.sizes() == v.sizes(), "k has shape ", k.sizes(), " and v ", v.sizes(), ", wanted one");
  TORCH_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3), "q has shape ", q.sizes(), " and k ", k.sizes(),
              ", wanted the same B and d");
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, q.size(1), " query heads cannot share ", k.size(1),
              " key/value heads evenly");
  TORCH_CHECK(q.size(3) >= 1 && q.size(3) <= widest, "head width ", q.size(3), " is not allowed: from 1 to ", widest,
              "; for others use minillama.attention");
}

inline void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef wanted) {
  TORCH_CHECK(tensor.sizes() == wanted, name, " has shape ", tensor.sizes(), ", wanted ", wanted);
}

}  // namespace minillama
