// Argument checks shared by all backends: each message says what is wanted and what was given.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
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

// q (B, T, H, d) and k (B, T, K, d); rotations fp32 (rows, r/2, 2), r <= d, for all rows of the batch, of which `offset`
// is the first or int64 positions (T) or (B, T) are the chosen; or (B, T, r/2, 2), a row for every token.
inline void check_rope(const at::Tensor& q, const at::Tensor& k, const at::Tensor& rotations,
                       const std::optional<at::Tensor>& positions, int64_t offset) {
  check_floating(q, "q");
  check_dtype(k, "k", q.scalar_type());
  check_dtype(rotations, "rotations", at::kFloat);
  for (const at::Tensor* other : {&k, &rotations})
    TORCH_CHECK(other->device() == q.device(), "q is on ", q.device(), " and k or rotations on ", other->device());
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && q.size(0) == k.size(0) && q.size(1) == k.size(1) &&
              q.size(3) == k.size(3), "q has shape ", q.sizes(), " and k ", k.sizes(),
              ", wanted (B, T, H, d) and (B, T, K, d)");
  const int64_t B = q.size(0), T = q.size(1), dims = rotations.dim(), rows = dims > 0 ? rotations.size(0) : 0;
  const bool fits = dims == 3 || (dims == 4 && rows == B && rotations.size(1) == T && !positions && offset == 0);
  TORCH_CHECK(fits && rotations.size(-1) == 2 && 2 * rotations.size(-2) <= q.size(3), "rotations has shape ",
              rotations.sizes(), " for q of shape ", q.sizes(), ", wanted (rows, r/2, 2) with r <= d, or, without "
              "positions and offset, (B, T, r/2, 2)");
  TORCH_CHECK(!rotations.requires_grad(),
              "rotations wants a gradient, and this operator has none for the table: use minillama.rope");
  if (!positions) {
    TORCH_CHECK(dims == 4 || (offset >= 0 && offset + T <= rows), "positions ", offset, " to ", offset + T,
                " (without the last) are wanted, and rotations has ", rows, " rows");
    return;
  }
  check_dtype(*positions, "positions", at::kLong);
  TORCH_CHECK(positions->device() == q.device(), "q is on ", q.device(), " and positions on ", positions->device());
  TORCH_CHECK(offset == 0, "positions and offset ", offset, " were given: use one of them");
  TORCH_CHECK(positions->sizes() == q.sizes().slice(1, 1) || positions->sizes() == q.sizes().slice(0, 2),
              "positions has shape ", positions->sizes(), ", wanted (T) or (B, T) of q's ", q.sizes());
  if (!positions->is_cpu()) return;  // to look would stop a GPU: there a position without a row makes NaN
  const at::Tensor dense = positions->contiguous();
  const auto* first = dense.const_data_ptr<int64_t>();
  for (const int64_t* position = first; position < first + dense.numel(); ++position)
    TORCH_CHECK(*position >= 0 && *position < rows, "position ", *position, " has no row: rotations has ", rows);
}

// A tensor that a kernel writes into, at the caller's wish: its strides must be usable and nobody's gradient is lost.
inline void check_written(const at::Tensor& x, const char* name) {
  TORCH_CHECK(x.size(-1) <= 1 || x.stride(-1) == 1, name, " has stride ", x.stride(-1), " in its last dimension, wanted "
              "1: only dense rows can be written in place");
  TORCH_CHECK(!(at::GradMode::is_enabled() && x.requires_grad()), name,
              " wants a gradient, and writing in place has none: use the operator `rope`, or torch.no_grad()");
  at::assert_no_internal_overlap(x);
}

// A weight (rows, columns) in NF4: ceil(n / 2) bytes of codes; ceil(n / block_size) absmax values in fp32, or uint8 codes
// of them with one fp32 scale for each 256 and an fp32 offset.
inline void check_nf4(const at::Tensor& codes, const at::Tensor& absmax, const std::optional<at::Tensor>& scale,
                      const std::optional<at::Tensor>& offset, int64_t rows, int64_t columns, int64_t block_size) {
  TORCH_CHECK(rows >= 0 && columns >= 0, "a weight of shape (", rows, ", ", columns, ") does not exist");
  TORCH_CHECK(block_size >= 2 && block_size % 2 == 0 && block_size <= int64_t{1} << 32, "block_size ", block_size,
              " is not allowed: use an even number up to 2^32");  // beyond, sums of sizes could run over
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
