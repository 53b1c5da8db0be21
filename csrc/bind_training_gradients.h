// Gradients of the operators of a training step, and the shapes of their results. bind_training.cpp includes this behind
// the kernels, whose signatures it uses.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace minillama {

// ---- gradients. The kernels lie below autograd; a call without a gradient costs next to nothing more.

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Signature>
static auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

struct NormGradient : torch::autograd::Function<NormGradient> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, double eps) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run = operator_named<decltype(rms_norm)>("minillama::rms_norm");
    const auto [y, scale] = run.call(x, weight, eps);
    ctx->save_for_backward({x, weight, scale});
    ctx->mark_non_differentiable({scale});
    return {y, scale};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto run = operator_named<decltype(rms_norm_backward)>("minillama::rms_norm_backward");
    const auto saved = ctx->get_saved_variables();
    const auto [dx, d_weight] = run.call(gradients[0], saved[0], saved[1], saved[2]);
    return {dx, d_weight, at::Tensor()};
  }
};
static std::tuple<at::Tensor, at::Tensor> rms_norm_autograd(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto results = NormGradient::apply(x, weight, eps);
  return {results[0], results[1]};
}

static at::Tensor normalize(const at::Tensor& x, const at::Tensor& weight, double eps) {
  static const auto run = operator_named<decltype(rms_norm)>("minillama::rms_norm");
  return std::get<0>(run.call(x, weight, eps));
}

struct GateGradient : torch::autograd::Function<GateGradient> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& a, const at::Tensor& b) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run = operator_named<decltype(silu_product)>("minillama::silu_product");
    ctx->save_for_backward({a, b});
    return run.call(a, b);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto run = operator_named<decltype(silu_product_backward)>("minillama::silu_product_backward");
    const auto saved = ctx->get_saved_variables();
    const auto [da, db] = run.call(gradients[0], saved[0], saved[1]);
    return {da, db};
  }
};
static at::Tensor silu_product_autograd(const at::Tensor& a, const at::Tensor& b) { return GateGradient::apply(a, b); }

struct HeadGradient : torch::autograd::Function<HeadGradient> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& weight,
                               const at::Tensor& targets, const at::Tensor& factors, int64_t rows) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto run = operator_named<decltype(head_loss)>("minillama::head_loss");
    const auto [loss, d_hidden, d_weight] = run.call(hidden, weight, targets, factors, rows);
    ctx->save_for_backward({d_hidden, d_weight});
    ctx->mark_non_differentiable({d_hidden, d_weight});
    return {loss, d_hidden, d_weight};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto dtype = saved[0].scalar_type();
    const at::Tensor d_weight = saved[1].dim() == 2 ? at::mul(saved[1], gradients[0]).to(dtype) : at::Tensor();
    return {at::mul(saved[0], gradients[0]).to(dtype), d_weight, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};
static std::tuple<at::Tensor, at::Tensor, at::Tensor> head_loss_autograd(const at::Tensor& hidden, const at::Tensor& weight,
                                                                         const at::Tensor& targets,
                                                                         const at::Tensor& factors, int64_t rows) {
  const auto results = HeadGradient::apply(hidden, weight, targets, factors, rows);
  return {results[0], results[1], results[2]};
}

// ---- shapes of results, for torch.compile

static at::Tensor like(const at::Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

static std::tuple<at::Tensor, at::Tensor> rms_norm_meta(const at::Tensor& x, const at::Tensor& weight, double) {
  const auto dtype = c10::promoteTypes(x.scalar_type(), weight.scalar_type());
  return {at::empty_symint(x.sym_sizes(), x.options().dtype(dtype)),
          at::empty_symint(x.sym_sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat))};
}
static std::tuple<at::Tensor, at::Tensor> rms_norm_backward_meta(const at::Tensor&, const at::Tensor& x,
                                                                 const at::Tensor& weight, const at::Tensor&) {
  return {like(x), like(weight)};
}
static at::Tensor silu_product_meta(const at::Tensor& a, const at::Tensor&) { return like(a); }
static std::tuple<at::Tensor, at::Tensor> silu_product_backward_meta(const at::Tensor&, const at::Tensor& a,
                                                                     const at::Tensor& b) {
  return {like(a), like(b)};
}
static at::Tensor cross_entropy_meta(const at::Tensor& logits, const at::Tensor&, const at::Tensor&) {
  return at::empty_symint(logits.sym_sizes().slice(0, 1), logits.options());
}

}  // namespace minillama
