// The decoding engine as a class for Python: a model's tensors become pointers once, each step checks what it is given.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "bind_matrix.h"
#include "checks.h"
#include "cpu/engine.h"

namespace minillama {

using Matrices = std::vector<c10::intrusive_ptr<WeightMatrix>>;

// torch.classes.minillama.Engine(matrices, (D, H, K, d, F, V), norm_eps, frequencies). The matrices: embeddings; of each
// layer attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3; norm, output. Gains of a norm are a row (1, D).
struct DecodingEngine : torch::CustomClassHolder {
  DecodingEngine(Matrices given, const std::vector<int64_t>& shape, double norm_eps, at::Tensor given_frequencies);
  // Logits (B, V) of tokens (B), and the stages of the residual stream, (layers + 2, B, D), if they are wanted.
  std::tuple<at::Tensor, at::Tensor> step(const at::Tensor& tokens, const at::Tensor& keys, const at::Tensor& values,
                                          int64_t length, const std::optional<at::Tensor>& left_pad, bool wants_stages);

 private:
  Cache cache_of(int64_t B, const at::Tensor& keys, const at::Tensor& values, int64_t length,
                 const std::optional<at::Tensor>& left_pad) const;

  Matrices matrices_;  // keep the tensors alive
  at::Tensor frequencies_;
  Model model_;
  std::optional<Engine> engine_;
};

static const Matrix& matrix(const Matrices& given, size_t number, int64_t rows, int64_t columns) {
  const Matrix& w = given[number]->matrix;
  TORCH_CHECK(w.rows == rows && w.columns == columns, "matrix ", number, " has shape (", w.rows, ", ", w.columns,
              "), wanted (", rows, ", ", columns, ")");
  return w;
}

static const Matrix& plain_matrix(const Matrices& given, size_t number, int64_t rows, int64_t columns) {
  const Matrix& w = matrix(given, number, rows, columns);
  TORCH_CHECK(w.form == Form::f32 || w.form == Form::bf16 || w.form == Form::f16, "matrix ", number,
              " is read row by row: it must be in fp32, bf16 or fp16");
  return w;
}

DecodingEngine::DecodingEngine(Matrices given, const std::vector<int64_t>& shape, double norm_eps,
                               at::Tensor given_frequencies)
    : matrices_(std::move(given)), frequencies_(std::move(given_frequencies)) {
  constexpr size_t each = 9;
  const size_t count = matrices_.size();
  TORCH_CHECK(shape.size() == 6 && count >= 3 && (count - 3) % each == 0, "given ", shape.size(), " sizes and ", count,
              " matrices, wanted 6 and 3 with ", each, " for each layer");
  const int64_t D = shape[0], H = shape[1], K = shape[2], d = shape[3], F = shape[4], V = shape[5];
  TORCH_CHECK(K > 0 && H % K == 0 && d > 0 && d % 2 == 0, H, " query heads of width ", d, " cannot share ", K,
              " key/value heads: wanted a multiple, and an even width");
  check_device(frequencies_, "frequencies", at::kCPU);
  check_dtype(frequencies_, "frequencies", at::kFloat);
  check_shape(frequencies_, "frequencies", {d / 2});
  frequencies_ = frequencies_.contiguous();
  model_ = {D, H, K, d, static_cast<float>(norm_eps), frequencies_.const_data_ptr<float>(),
            plain_matrix(matrices_, 0, V, D), plain_matrix(matrices_, count - 2, 1, D),
            matrix(matrices_, count - 1, V, D), {}};
  for (size_t n = 1; n + each < count; n += each)
    model_.layers.push_back({plain_matrix(matrices_, n, 1, D), matrix(matrices_, n + 1, H * d, D),
                             matrix(matrices_, n + 2, K * d, D), matrix(matrices_, n + 3, K * d, D),
                             matrix(matrices_, n + 4, D, H * d), plain_matrix(matrices_, n + 5, 1, D),
                             matrix(matrices_, n + 6, F, D), matrix(matrices_, n + 7, D, F),
                             matrix(matrices_, n + 8, F, D)});
  engine_.emplace(model_);
}

Cache DecodingEngine::cache_of(int64_t B, const at::Tensor& keys, const at::Tensor& values, int64_t length,
                               const std::optional<at::Tensor>& left_pad) const {
  const int64_t L = static_cast<int64_t>(model_.layers.size()), K = model_.kv_heads, d = model_.head_dim;
  check_device(keys, "keys", at::kCPU);
  check_device(values, "values", at::kCPU);
  check_dtype(values, "values", keys.scalar_type());
  TORCH_CHECK(keys.dim() == 5, "keys has shape ", keys.sizes(), ", wanted (L, B, K, max_len, d)");
  const int64_t max_len = keys.size(3);
  check_shape(keys, "keys", {L, B, K, max_len, d});
  check_shape(values, "values", keys.sizes());
  TORCH_CHECK(keys.strides() == values.strides() && keys.stride(4) == 1 && keys.stride(3) == d &&
              keys.stride(2) == max_len * d, "keys has strides ", keys.strides(), " and values ", values.strides(),
              ", wanted one, the last three dimensions without gaps");
  TORCH_CHECK(length >= 0 && length < max_len, "the cache holds ", max_len, " tokens and ", length + 1,
              " are wanted: give a larger max_len");
  if (left_pad) {
    check_device(*left_pad, "left_pad", at::kCPU);
    check_dtype(*left_pad, "left_pad", at::kLong);
    check_shape(*left_pad, "left_pad", {B});
    TORCH_CHECK(left_pad->is_contiguous(), "left_pad is not contiguous");
    for (int64_t b = 0; b < B; ++b)
      TORCH_CHECK(left_pad->const_data_ptr<int64_t>()[b] >= 0, "left_pad holds a negative number");
  }
  return {form_of(keys, "keys"), keys.mutable_data_ptr(), values.mutable_data_ptr(), keys.stride(0), keys.stride(1),
          max_len, length, left_pad ? left_pad->const_data_ptr<int64_t>() : nullptr};
}

std::tuple<at::Tensor, at::Tensor> DecodingEngine::step(const at::Tensor& tokens, const at::Tensor& keys,
                                                        const at::Tensor& values, int64_t length,
                                                        const std::optional<at::Tensor>& left_pad, bool wants_stages) {
  check_device(tokens, "tokens", at::kCPU);
  check_dtype(tokens, "tokens", at::kLong);
  TORCH_CHECK(tokens.dim() == 1 && tokens.numel() >= 1 && tokens.numel() <= kMostRows && tokens.is_contiguous(),
              "tokens has shape ", tokens.sizes(), ", wanted one for each of 1 to ", kMostRows, " rows");
  const int64_t B = tokens.numel(), V = model_.output.rows, D = model_.dim;
  const auto* ids = tokens.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < B; ++b)
    TORCH_CHECK(ids[b] >= 0 && ids[b] < V, "token ", ids[b], " is not known: ids go from 0 to ", V - 1);
  const Cache cache = cache_of(B, keys, values, length, left_pad);
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor logits = at::empty({B, V}, options);
  std::vector<float> stages;
  engine_->step(ids, B, cache, logits.mutable_data_ptr<float>(), wants_stages ? &stages : nullptr);
  const at::Tensor told = at::empty({static_cast<int64_t>(stages.size()) / (B * D), B, D}, options);
  std::copy(stages.begin(), stages.end(), told.mutable_data_ptr<float>());
  return {logits, told};
}

}  // namespace minillama

TORCH_LIBRARY_FRAGMENT(minillama, m) {
  using minillama::DecodingEngine, minillama::WeightMatrix;
  m.class_<WeightMatrix>("Matrix")  // first: the engine's constructor takes them
      .def(torch::init<std::string, std::vector<at::Tensor>, int64_t, int64_t, double>())
      .def("product", [](const c10::intrusive_ptr<WeightMatrix>& self, const at::Tensor& x) { return self->product(x); })
      .def("read", [](const c10::intrusive_ptr<WeightMatrix>& self) { return self->read(); });
  m.class_<DecodingEngine>("Engine")
      .def(torch::init<minillama::Matrices, std::vector<int64_t>, double, at::Tensor>())
      .def("step", &DecodingEngine::step);
}
