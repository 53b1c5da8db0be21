// x W^T in fp32 for many rows, with its gradients, by oneDNN, which PyTorch brings along. PyTorch's own linear layer is MKL's
// there, which on CPUs not of its maker has about half the rate (bench/products.py). Everything else is left to PyTorch.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

namespace minillama {

constexpr int64_t kWorth = int64_t{1} << 21;  // multiplications that pay for the 10 microseconds that oneDNN's call takes

// PyTorch's operator over oneDNN; none in a PyTorch that was built without it.
static const std::optional<c10::OperatorHandle>& onednn_linear() {
  static const auto found = [] {
    const auto handle = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    const bool known = handle && handle->schema().arguments().size() == 6;
    return known ? handle : std::optional<c10::OperatorHandle>();
  }();
  return found;
}

// a (..., K) times b (N, K), of any strides -> a b^T (..., N).
static at::Tensor multiply_rows(const at::Tensor& a, const at::Tensor& b) {
  const auto dense = [](const at::Tensor& x) { return x.scalar_type() == at::kFloat && x.device().is_cpu(); };
  const bool large = a.dim() >= 2 && b.dim() == 2 && a.numel() * b.size(0) >= kWorth && a.numel() > a.size(-1);
  if (!large || !dense(a) || !dense(b) || a.size(-1) != b.size(1) || !onednn_linear()) return at::linear(a, b);
  torch::jit::Stack stack{a, b, c10::IValue(), "none", c10::List<std::optional<at::Scalar>>(), ""};
  onednn_linear()->callBoxed(stack);
  return stack.front().toTensor();
}

static at::Tensor linear(const at::Tensor& x, const at::Tensor& weight) { return multiply_rows(x, weight); }

struct LinearGradient : torch::autograd::Function<LinearGradient> {
  using Context = torch::autograd::AutogradContext;
  static at::Tensor multiply(const at::Tensor& a, const at::Tensor& b) {  // by the operator, which knows other tensors too
    static const auto run =
        c10::Dispatcher::singleton().findSchemaOrThrow("minillama::linear", "").typed<decltype(linear)>();
    return run.call(a, b);
  }
  static at::Tensor rows_of(const at::Tensor& x) { return x.reshape_symint({-1, x.sym_size(-1)}); }
  static at::Tensor forward(Context* ctx, const at::Tensor& x, const at::Tensor& weight) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({weight.requires_grad() ? x : at::Tensor(), weight});
    return multiply(x, weight);
  }
  // dx = dy W, dW = dy^T x
  static torch::autograd::variable_list backward(Context* ctx, const torch::autograd::variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor x = saved[0], weight = saved[1], dy = gradients[0];
    at::Tensor dx, d_weight;
    if (ctx->needs_input_grad(0)) dx = multiply(dy, weight.t());
    if (ctx->needs_input_grad(1)) d_weight = multiply(rows_of(dy).t(), rows_of(x).t());
    return {dx, d_weight};
  }
};
static at::Tensor linear_autograd(const at::Tensor& x, const at::Tensor& weight) { return LinearGradient::apply(x, weight); }

static at::Tensor linear_meta(const at::Tensor& x, const at::Tensor& weight) {
  auto shape = x.sym_sizes().vec();
  shape.back() = weight.sym_size(0);
  return at::empty_symint(shape, x.options());
}

}  // namespace minillama
