// The operators of a model that writes. Only bind_kernels.h includes this, which has what both share with the others.
#pragma once

namespace minillama {

// For a few queries and without a gradient: the keys split over blocks. What is not aligned to 16 bytes is left to the
// kernels above.
static at::Tensor flash_decoding(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                                 const std::optional<at::Tensor>& mask) {
  const auto shape = attention_shape(q, k, v, causal);
  const at::Tensor K = dense_rows(k), V = dense_rows(v), Q = dense_rows(q);
  const bool fits = kernels::fits_decoding(dtype_of(q), strided(K), strided(V), shape.width);
  TORCH_CHECK(shape.queries <= kernels::kDecodingQueries, "q has ", shape.queries, " queries, and this kernel takes up to ",
              kernels::kDecodingQueries, ": use flash_attention");
  if (!fits) return std::get<0>(flash_attention(q, k, v, causal, mask));
  const c10::DeviceGuard guard(q.device());
  const at::Tensor seen = mask ? spread_mask(*mask, shape.batch, shape.queries, shape.keys, kDevice) : at::Tensor();
  check_together({{"q", q}, {"mask", seen}});
  const int64_t parts = kernels::decoding_parts(shape);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor part_out = at::empty({shape.batch, shape.heads, shape.queries, parts, shape.width},
                                  q.options().dtype(at::kFloat));
  at::Tensor part_rows = at::empty({shape.batch, shape.heads, shape.queries, parts, 2}, part_out.options());
  const Watched watched{{"q", Q}, {"k", K}, {"v", V}, {"mask", seen}, {"out", out}, {"parts", part_out},
                        {"rows of parts", part_rows}};
  kernels::AttentionMask by_strides = {};
  if (mask) by_strides = {seen.const_data_ptr<bool>(), seen.stride(0), seen.stride(1)};
  in_use->flash_decoding(dtype_of(q), strided(Q), strided(K), strided(V), by_strides, out.mutable_data_ptr(),
                         part_out.mutable_data_ptr<float>(), part_rows.mutable_data_ptr<float>(), shape, stream_of(q));
  return out;
}

// What each row of the batch holds: int64 (B), looked at where that does not stop a GPU, on which a row that does not fit
// becomes NaN; without `lengths` all hold `length`. `positions`: rows of the table of angles.
static void check_lengths(const std::optional<at::Tensor>& lengths, int64_t length,
                          const std::optional<at::Tensor>& begins, int64_t batch, int64_t room, int64_t positions) {
  TORCH_CHECK(!lengths || length == 0, "lengths and length ", length, " were given: use one of them");
  TORCH_CHECK(lengths || (length >= 0 && length < room), "a row holds ", length, " tokens and has room for ", room,
              ": one more does not fit");
  for (const auto& [name, x] : {std::pair("lengths", lengths), std::pair("begins", begins)}) {
    if (!x) continue;
    check_dtype(*x, name, at::kLong);
    check_shape(*x, name, {batch});
  }
  if ((lengths && !lengths->is_cpu()) || (begins && !begins->is_cpu())) return;
  const at::Tensor held = lengths ? lengths->contiguous() : at::Tensor();
  const at::Tensor padding = begins ? begins->contiguous() : at::Tensor();
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t holds = lengths ? held.const_data_ptr<int64_t>()[b] : length;
    const int64_t begin = begins ? padding.const_data_ptr<int64_t>()[b] : 0;
    TORCH_CHECK(holds >= 0 && holds < room, "row ", b, " holds ", holds, " tokens and has room for ", room,
                ": one more does not fit");
    TORCH_CHECK(begin >= 0 && begin <= holds, "row ", b, " begins at ", begin, " and holds ", holds, " tokens");
    TORCH_CHECK(holds - begin < positions, "position ", holds - begin, " has no row: rotations has ", positions);
  }
}

// The rows of a table that the new tokens take: `rotations` (rows, r/2, 2) by their lengths, or (1 or B, 1, r/2, 2).
static kernels::NewTokens new_tokens(const at::Tensor& rotations, int64_t batch, int64_t width, bool interleaved) {
  const bool own = rotations.dim() == 4;
  TORCH_CHECK((rotations.dim() == 3 || (own && rotations.size(1) == 1 && (rotations.size(0) == 1 ||
              rotations.size(0) == batch))) && rotations.size(-1) == 2 && 2 * rotations.size(-2) <= width,
              "rotations has shape ", rotations.sizes(), ", wanted (rows, r/2, 2) with r <= ", width,
              ", or (1 or B, 1, r/2, 2)");
  check_dtype(rotations, "rotations", at::kFloat);
  return {rotations.const_data_ptr<float>(), rotations.size(0), rotations.size(-2),
          own && rotations.size(0) > 1 ? 1 : 0, !own, interleaved, nullptr, nullptr, 0};
}

static kernels::CacheRows cache_rows(const at::Tensor& x) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// (B, 1, H, d) -> (batch, head, row, width)
static at::Tensor heads_of(const at::Tensor& x) { return dense_rows(x.transpose(1, 2)); }

// keys and values (B, K, room, d) get row lengths[b]; q (B, 1, H, d), k and v (B, 1, K, d) come before RoPE.
static at::Tensor flash_decoding_append(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                        const at::Tensor& keys, const at::Tensor& values, const at::Tensor& arrivals,
                                        const at::Tensor& rotations, const std::optional<at::Tensor>& lengths,
                                        int64_t length, const std::optional<at::Tensor>& begins, bool interleaved) {
  TORCH_CHECK(q.dim() == 4 && q.size(1) == 1, "q has shape ", q.sizes(), ", wanted (B, 1, H, d): one token a row");
  const at::Tensor Q = heads_of(q);
  auto shape = attention_shape(Q, keys, values, true);
  check_shape(k, "k", {shape.batch, 1, shape.kv_heads, shape.width});
  check_shape(v, "v", k.sizes());
  for (const auto& [name, x] : {std::pair("k", k), std::pair("v", v)}) check_dtype(x, name, q.scalar_type());
  check_dtype(arrivals, "arrivals", at::kInt);
  TORCH_CHECK(arrivals.numel() >= shape.batch * shape.heads && arrivals.is_contiguous(), "arrivals holds ",
              arrivals.numel(), " counters, wanted ", shape.batch * shape.heads, ", side by side");
  TORCH_CHECK(!(at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad())),
              "q, k or v wants a gradient, and a cache has none: use torch.no_grad()");
  for (const auto& [name, x] : {std::pair("keys", keys), std::pair("values", values)}) check_written(x, name);
  at::assert_no_overlap(keys, values);
  const at::Tensor table = rotations.contiguous(), held = lengths ? lengths->contiguous() : at::Tensor();
  const at::Tensor padding = begins ? begins->contiguous() : at::Tensor(), K = heads_of(k), V = heads_of(v);
  check_together({{"q", q}, {"k", k}, {"v", v}, {"keys", keys}, {"values", values}, {"arrivals", arrivals},
                  {"rotations", table}, {"lengths", held}, {"begins", padding}});
  TORCH_CHECK(kernels::fits_decoding(dtype_of(q), strided(keys), strided(values), shape.width), "a cache of width ",
              shape.width, " and strides ", keys.strides(), " cannot be read 16 bytes at a time: use the operators "
              "rope_into and flash_decoding");
  kernels::NewTokens token = new_tokens(table, shape.batch, shape.width, interleaved);
  check_lengths(lengths, length, begins, shape.batch, shape.keys, token.by_length ? token.rows : INT64_MAX);
  token.lengths = lengths ? held.const_data_ptr<int64_t>() : nullptr, token.length = length;
  token.begins = begins ? padding.const_data_ptr<int64_t>() : nullptr;
  const c10::DeviceGuard guard(q.device());
  const int64_t parts = kernels::decoding_parts(shape);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor part_out = at::empty({shape.batch, shape.heads, parts, shape.width}, q.options().dtype(at::kFloat));
  at::Tensor part_rows = at::empty({shape.batch, shape.heads, parts, 2}, part_out.options());
  const Watched watched{{"q", Q}, {"k", K}, {"v", V}, {"keys", keys}, {"values", values}, {"arrivals", arrivals},
                        {"rotations", table}, {"lengths", held}, {"begins", padding}, {"out", out}, {"parts", part_out},
                        {"rows of parts", part_rows}};
  in_use->flash_decoding_append(dtype_of(q), strided(Q), strided(K), strided(V), cache_rows(keys), cache_rows(values),
                                token, out.mutable_data_ptr(), part_out.mutable_data_ptr<float>(),
                                part_rows.mutable_data_ptr<float>(), static_cast<unsigned*>(arrivals.mutable_data_ptr()),
                                shape, stream_of(q));
  for (const at::Tensor* written : {&keys, &values, &arrivals}) tell_autograd(*written);
  return out;
}

}  // namespace minillama
