// RMSNorm, SwiGLU's gate and cross entropy as operators: tensors to rows in fp32, rows to threads. Nothing depends on the
// number of threads: what is summed over rows is summed in shares of kShare rows, and these one after another.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "bind_linear.h"
#include "checks.h"
#include "cpu/attention_loops.h"
#include "cpu/row_loops.h"

namespace minillama {

constexpr int64_t kNumbersPerTask = 32768;  // some 10 microseconds, about what waking a thread costs
constexpr int64_t kPiece = 2048;            // numbers of an elementwise operator at once: few enough for the first cache
constexpr int64_t kShare = 64;              // rows whose gradients of a gain are summed together

// The rows of a dense tensor, read and written in fp32: in place where they are, else by a copy that the caller lends.
class Rows {
 public:
  explicit Rows(const at::Tensor& x) : data_(x.data_ptr()) {
    using kernels::DType;
    const auto dtype = x.scalar_type();
    dtype_ = dtype == at::kFloat ? DType::f32 : dtype == at::kHalf ? DType::f16 : DType::bf16;
  }
  bool in_place() const { return dtype_ == kernels::DType::f32; }
  const float* read(int64_t at, int64_t n, float* copy) const {
    if (in_place()) return static_cast<const float*>(data_) + at;
    attention_loops().read(dtype_, data_, at, copy, n);
    return copy;
  }
  float* place(int64_t at, float* copy) const { return in_place() ? static_cast<float*>(data_) + at : copy; }
  void write(const float* from, int64_t at, int64_t n) const {
    if (!in_place()) attention_loops().write(dtype_, from, data_, at, n);
  }

 private:
  void* data_;
  kernels::DType dtype_;
};

static int64_t rows_per_task(int64_t n) { return std::max<int64_t>(1, kNumbersPerTask / std::max<int64_t>(1, n)); }

static void check_norm(const at::Tensor& x, const at::Tensor& weight) {
  check_floating(x, "x");
  check_floating(weight, "weight");
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) > 0, "x has shape ", x.sizes(), ", wanted (..., D)");
  check_shape(weight, "weight", {x.size(-1)});
}

static std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_norm(x, weight);
  const at::Tensor dense = x.contiguous(), gain = weight.to(at::kFloat).contiguous();
  const auto dtype = c10::promoteTypes(x.scalar_type(), weight.scalar_type());
  const at::Tensor y = at::empty(x.sizes(), x.options().dtype(dtype));
  const at::Tensor scale = at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat));
  const at::Tensor normed = x.scalar_type() == dtype ? y : at::empty_like(dense);
  const int64_t n = x.size(-1);
  const Rows from(dense), to(y), rounded(normed);
  const float* gains = gain.const_data_ptr<float>();
  auto* scales = scale.mutable_data_ptr<float>();
  at::parallel_for(0, scale.numel(), rows_per_task(n), [&](int64_t begin, int64_t end) {
    std::vector<float> copies(2 * n), ones(from.in_place() ? 0 : n, 1.0f);
    for (int64_t r = begin; r < end; ++r) {
      const float* row = from.read(r * n, n, copies.data());
      float* result = to.place(r * n, copies.data() + n);
      scales[r] = 1 / std::sqrt(float(row_loops().sum_of_squares(row, n) / double(n)) + float(eps));
      if (from.in_place()) {
        row_loops().normalize(row, scales[r], gains, result, n);
      } else {  // rounded to x's dtype before the gain, as the reference is
        row_loops().normalize(row, scales[r], ones.data(), copies.data(), n);
        rounded.write(copies.data(), r * n, n);
        row_loops().normalize(rounded.read(r * n, n, copies.data()), 1.0f, gains, result, n);
      }
      to.write(result, r * n, n);
    }
  });
  return {y, scale};
}

static std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                                            const at::Tensor& weight, const at::Tensor& scale) {
  check_norm(x, weight);
  check_floating(dy, "dy");
  check_shape(dy, "dy", x.sizes());
  check_dtype(scale, "scale", at::kFloat);
  check_shape(scale, "scale", x.sizes().slice(0, x.dim() - 1));
  const at::Tensor X = x.contiguous(), dY = dy.contiguous(), gain = weight.to(at::kFloat).contiguous();
  const at::Tensor S = scale.contiguous(), dx = at::empty(x.sizes(), x.options());
  const int64_t n = x.size(-1), rows = S.numel(), shares = (rows + kShare - 1) / kShare;
  const at::Tensor parts = at::zeros({shares, n}, S.options()), d_gain = at::zeros({n}, S.options());
  const Rows of_x(X), of_dy(dY), of_dx(dx);
  const auto *gains = gain.const_data_ptr<float>(), *scales = S.const_data_ptr<float>();
  auto *part = parts.mutable_data_ptr<float>(), *total = d_gain.mutable_data_ptr<float>();
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> copies(3 * n);
    for (int64_t r = begin * kShare; r < std::min(rows, end * kShare); ++r) {
      float* result = of_dx.place(r * n, copies.data() + 2 * n);
      row_loops().normalize_backward(of_dy.read(r * n, n, copies.data()), of_x.read(r * n, n, copies.data() + n), gains,
                                     scales[r], result, part + r / kShare * n, n);
      of_dx.write(result, r * n, n);
    }
  });
  for (int64_t share = 0; share < shares; ++share)
    for (int64_t i = 0; i < n; ++i) total[i] += part[share * n + i];
  return {dx, d_gain.to(weight.scalar_type())};
}

static void check_gate(const at::Tensor& a, const at::Tensor& b) {
  check_floating(a, "a");
  check_dtype(b, "b", a.scalar_type());
  check_shape(b, "b", a.sizes());
}

// Runs work(at, n) on pieces of `size` numbers.
template <typename Work>
static void in_pieces(int64_t size, const Work& work) {
  at::parallel_for(0, (size + kPiece - 1) / kPiece, kNumbersPerTask / kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kPiece; at < std::min(size, end * kPiece); at += kPiece)
      work(at, std::min(kPiece, size - at));
  });
}

static at::Tensor silu_product(const at::Tensor& a, const at::Tensor& b) {
  check_gate(a, b);
  const at::Tensor A = a.contiguous(), B = b.contiguous(), y = at::empty(a.sizes(), a.options());
  const Rows of_a(A), of_b(B), of_y(y);
  in_pieces(a.numel(), [&](int64_t at, int64_t n) {
    float copies[3][kPiece];
    float* result = of_y.place(at, copies[2]);
    row_loops().gate(of_a.read(at, n, copies[0]), of_b.read(at, n, copies[1]), result, n);
    of_y.write(result, at, n);
  });
  return y;
}

static std::tuple<at::Tensor, at::Tensor> silu_product_backward(const at::Tensor& dy, const at::Tensor& a,
                                                                const at::Tensor& b) {
  check_gate(a, b);
  check_gate(a, dy);
  const at::Tensor A = a.contiguous(), B = b.contiguous(), dY = dy.contiguous();
  const at::Tensor da = at::empty(a.sizes(), a.options()), db = at::empty(a.sizes(), a.options());
  const Rows of_a(A), of_b(B), of_dy(dY), of_da(da), of_db(db);
  in_pieces(a.numel(), [&](int64_t at, int64_t n) {
    float copies[5][kPiece];
    float *to_a = of_da.place(at, copies[3]), *to_b = of_db.place(at, copies[4]);
    row_loops().gate_backward(of_dy.read(at, n, copies[0]), of_a.read(at, n, copies[1]), of_b.read(at, n, copies[2]), to_a,
                              to_b, n);
    of_da.write(to_a, at, n);
    of_db.write(to_b, at, n);
  });
  return {da, db};
}

// -100 is the label of what is not learned: its loss is 0, and so is its gradient.
constexpr int64_t kIgnore = -100;

static at::Tensor cross_entropy_(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& factors) {
  check_dtype(logits, "logits", at::kFloat);
  check_dtype(targets, "targets", at::kLong);
  check_dtype(factors, "factors", at::kFloat);
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "logits have shape ", logits.sizes(), ", wanted (N, V)");
  TORCH_CHECK(logits.is_contiguous(), "logits have strides ", logits.strides(), ", wanted dense rows: they are "
              "overwritten by their gradient");
  check_shape(targets, "targets", {logits.size(0)});
  check_shape(factors, "factors", {logits.size(0)});
  check_written(logits, "logits");
  const int64_t V = logits.size(1);
  const at::Tensor chosen = targets.contiguous(), weights = factors.contiguous();
  const at::Tensor losses = at::empty({logits.size(0)}, logits.options());
  const auto* target = chosen.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < logits.size(0); ++r)
    TORCH_CHECK(target[r] == kIgnore || (target[r] >= 0 && target[r] < V), "target ", target[r], " is not one of ", V,
                " tokens, 0 to ", V - 1, ", nor ", kIgnore, ", which is not learned");
  const auto* factor = weights.const_data_ptr<float>();
  auto *row = logits.mutable_data_ptr<float>(), *loss = losses.mutable_data_ptr<float>();
  at::parallel_for(0, logits.size(0), rows_per_task(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      loss[r] = 0;
      if (target[r] == kIgnore) std::fill(row + r * V, row + (r + 1) * V, 0.0f);
      else loss[r] = row_loops().cross_entropy(row + r * V, V, target[r], factor[r]);
    }
  });
  return losses;
}

constexpr int64_t kLogits = int64_t{1} << 22;  // at once, 16 MiB: the system hands out larger memory anew each time, zeroed

// sum_n factor_n * -log softmax(h_n W^T)[target_n] and its gradients of h and W, `rows` rows of logits at a time: their
// gradient takes their place, and all (N, V) of them, the largest tensor of a step, never are in memory.
static std::tuple<at::Tensor, at::Tensor, at::Tensor> head_loss(const at::Tensor& hidden, const at::Tensor& weight,
                                                                const at::Tensor& targets, const at::Tensor& factors,
                                                                int64_t rows) {
  check_floating(hidden, "hidden");
  check_dtype(weight, "weight", hidden.scalar_type());
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1), "hidden has shape ",
              hidden.sizes(), " and weight ", weight.sizes(), ", wanted (N, D) and (V, D)");
  TORCH_CHECK(rows >= 0 && weight.size(0) > 0, "rows is ", rows, " and weight has shape ", weight.sizes(),
              ": use a number of rows, or 0 for as many as suit, and one token at least");
  const int64_t N = hidden.size(0);
  if (rows == 0) rows = std::max<int64_t>(1, kLogits / weight.size(0));
  check_shape(targets, "targets", {N});
  check_shape(factors, "factors", {N});
  const bool trained = weight.requires_grad();
  const at::Tensor d_hidden = at::empty(hidden.sizes(), hidden.options());
  const at::Tensor d_weight = at::zeros(trained ? weight.sizes() : at::IntArrayRef{0}, hidden.options().dtype(at::kFloat));
  const at::Tensor loss = at::zeros({}, d_weight.options()), W = weight.detach();
  for (int64_t begin = 0; begin < N; begin += rows) {
    const int64_t n = std::min(rows, N - begin);
    const at::Tensor h = hidden.detach().narrow(0, begin, n), f = factors.narrow(0, begin, n);
    const at::Tensor scores = multiply_rows(h, W).to(at::kFloat).contiguous();
    const at::Tensor losses = cross_entropy_(scores, targets.narrow(0, begin, n), f);
    loss.add_(at::sum(at::mul(losses, f)));
    at::Tensor to = d_hidden.narrow(0, begin, n);
    to.copy_(multiply_rows(scores.to(W.scalar_type()), W.t()));
    if (trained) d_weight.add_(multiply_rows(scores.t(), h.to(at::kFloat).t()));
  }
  return {loss, d_hidden, d_weight};
}

}  // namespace minillama

#include "bind_training_gradients.h"  // of the functions above

TORCH_LIBRARY_FRAGMENT(minillama, m) {
  // x (..., D), weight (D) -> y (..., D) in the promoted dtype; scale (...), 1 / sqrt(mean(x^2) + eps) in fp32
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor scale)");
  m.def("normalize(Tensor x, Tensor weight, float eps) -> Tensor", &minillama::normalize);  // y alone
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor scale) -> (Tensor dx, Tensor d_weight)");
  // x (..., K), weight (N, K) -> x W^T (..., N)
  m.def("linear(Tensor x, Tensor weight) -> Tensor");
  // a and b of one shape and dtype -> silu(a) * b
  m.def("silu_product(Tensor a, Tensor b) -> Tensor");
  m.def("silu_product_backward(Tensor dy, Tensor a, Tensor b) -> (Tensor da, Tensor db)");
  // logits (N, V) fp32, targets (N) int64, factors (N) fp32 -> losses (N); logits become factor times their gradient
  m.def("cross_entropy_(Tensor(a!) logits, Tensor targets, Tensor factors) -> Tensor losses");
  // hidden (N, D), weight (V, D) -> sum of factor times loss, and its gradients of both, W's where it is trained, in fp32
  m.def("head_loss(Tensor hidden, Tensor weight, Tensor targets, Tensor factors, int rows=0) "
        "-> (Tensor loss, Tensor d_hidden, Tensor d_weight)");
}

TORCH_LIBRARY_IMPL(minillama, CPU, m) {
  m.impl("rms_norm", &minillama::rms_norm);
  m.impl("rms_norm_backward", &minillama::rms_norm_backward);
  m.impl("linear", &minillama::linear);
  m.impl("silu_product", &minillama::silu_product);
  m.impl("silu_product_backward", &minillama::silu_product_backward);
  m.impl("cross_entropy_", &minillama::cross_entropy_);
  m.impl("head_loss", &minillama::head_loss);
}

TORCH_LIBRARY_IMPL(minillama, Autograd, m) {
  m.impl("rms_norm", &minillama::rms_norm_autograd);
  m.impl("linear", &minillama::linear_autograd);
  m.impl("silu_product", &minillama::silu_product_autograd);
  m.impl("head_loss", &minillama::head_loss_autograd);
}

TORCH_LIBRARY_IMPL(minillama, Meta, m) {
  m.impl("rms_norm", &minillama::rms_norm_meta);
  m.impl("rms_norm_backward", &minillama::rms_norm_backward_meta);
  m.impl("linear", &minillama::linear_meta);
  m.impl("silu_product", &minillama::silu_product_meta);
  m.impl("silu_product_backward", &minillama::silu_product_backward_meta);
  m.impl("cross_entropy_", &minillama::cross_entropy_meta);
}
