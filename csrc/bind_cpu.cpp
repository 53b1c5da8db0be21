// CPU kernels as operators: tensors to pointers, work to threads, nothing else.

#include <ATen/Parallel.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "bind_attention.h"
#include "bind_nf4.h"
#include "bind_rope.h"
#include "cpu/matrix_codes.h"
#include "cpu/nf4_absmax.h"
#include "cpu/nf4_int8.h"
#include "cpu/nf4_matmul.h"
#include "cpu/nf4_matvec.h"
#include "cpu/rope.h"
#include "cpu/vectors.h"

namespace minillama {

// 32768 elements take some 10 microseconds, about what waking a thread costs: no smaller share is given to one.
constexpr int64_t kElementsPerTask = 32768;
constexpr int64_t kInt8Tile = 32;  // rows of W in int8 that share what is read of x

static void turn_heads(const RopeTensors& tensors, const kernels::RopeTable& table, const kernels::RopeShape& shape) {
  const auto q = rope_rows(tensors.q, tensors.q_out), k = rope_rows(tensors.k, tensors.k_out);
  const auto dtype = dtype_of(tensors.q);
  const auto run = dtype == kernels::DType::f32   ? rope_cpu<float>
                   : dtype == kernels::DType::f16 ? rope_cpu<c10::Half>
                                                  : rope_cpu<c10::BFloat16>;
  const int64_t elements = std::max<int64_t>(1, (q.heads + k.heads) * shape.width);  // of a token
  at::parallel_for(0, shape.batch * shape.tokens, std::max<int64_t>(1, kElementsPerTask / elements),
                   [&](int64_t begin, int64_t end) { run(q, k, table, shape, begin, end); });
}

// Runs `task` on shares of [0, size) that begin at multiples of `step`.
template <typename Task>
static void share(int64_t size, int64_t step, const Task& task) {
  at::parallel_for(0, (size + step - 1) / step, 1,
                   [&](int64_t begin, int64_t end) { task(begin * step, std::min(size, end * step)); });
}

template <typename Scalar>
static void multiply_in(const NF4Tensors& t, const kernels::NF4& w, bool forward) {
  const int64_t M = t.out.numel() / t.out.size(-1);
  const bool by_matvec = forward && nf4_by_matvec(w, M);
  std::vector<float> absmax(by_matvec ? 0 : t.absmax.numel());
  share(absmax.size(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    nf4_absmax(w, begin, end, absmax.data() + begin);
  });
  NF4Product product{w, absmax.data(), M, by_matvec, {}};
  const auto* x = t.x.const_data_ptr<Scalar>();
  auto* out = t.out.mutable_data_ptr<Scalar>();
  if (forward) {
    nf4_lay_out(product, x);
    share(w.rows, kNF4Tile, [&](int64_t begin, int64_t end) { nf4_rows(product, begin, end, out); });
  } else {
    nf4_lay_out_backward(product, x);
    share(w.columns, kPanel, [&](int64_t begin, int64_t end) { nf4_columns(product, begin, end, out); });
  }
}

static void multiply(const NF4Tensors& tensors, const kernels::NF4& w, bool forward) {
  const auto dtype = dtype_of(tensors.x);
  const auto run = dtype == kernels::DType::f32   ? multiply_in<float>
                   : dtype == kernels::DType::f16 ? multiply_in<c10::Half>
                                                  : multiply_in<c10::BFloat16>;
  run(tensors, w, forward);
}

static void multiply_rounded(const NF4Tensors& t, const kernels::NF4& w, bool) {
  TORCH_CHECK(nf4_int8_fits(w), "activations in int8 need columns and a block_size that are multiples of ", kNF4Piece,
              ", the weight has ", w.columns, " and ", w.block_size, ": multiply with activations in fp32");
  const at::Tensor x = t.x.to(at::kFloat), y = at::empty(t.out.sizes(), x.options());
  NF4Int8Rows rows;
  nf4_int8_lay_out(x.const_data_ptr<float>(), y.numel() / w.rows, w.columns, rows);
  auto* out = y.mutable_data_ptr<float>();
  share(w.rows, kNF4Tile, [&](int64_t begin, int64_t end) {
    nf4_int8_rows(w, rows, begin, end, out + begin, w.rows);
  });
  t.out.copy_(y);
}

static at::Tensor nf4_matmul_int8(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& absmax,
                                  const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& offset,
                                  int64_t out_features, int64_t block_size) {
  return nf4_product(x, codes, absmax, scale, offset, out_features, block_size, true, &multiply_rounded);
}

// x (..., columns) W^T for W in int8, (rows, columns), as minillama/quant/int8.py multiplies; columns of outliers in fp32.
static at::Tensor int8_matmul(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& absmax, double threshold) {
  check_floating(x, "x");
  check_dtype(codes, "codes", at::kChar);
  check_dtype(absmax, "absmax", at::kFloat);
  TORCH_CHECK(codes.dim() == 2 && x.dim() >= 1 && x.size(-1) == codes.size(1), "x has shape ", x.sizes(), " and codes ",
              codes.sizes(), ", wanted (..., columns) and (rows, columns)");
  check_shape(absmax, "absmax", {codes.size(0)});
  TORCH_CHECK(threshold > 0, "threshold ", threshold, " is not allowed: use a positive size, or infinity");
  const at::Tensor from = x.to(at::kFloat).contiguous(), stored = codes.contiguous(), scales = absmax.contiguous();
  auto sizes = x.sizes().vec();
  sizes.back() = codes.size(0);
  const at::Tensor y = at::empty(sizes, from.options());
  const Matrix w{Form::int8, codes.size(0), codes.size(1), stored.const_data_ptr(), scales.const_data_ptr<float>(),
                 static_cast<float>(threshold), {}};
  if (y.numel() == 0) return y.to(x.scalar_type());
  Activations rows{from.const_data_ptr<float>(), y.numel() / w.rows, {}, {}, {}, {}, {}};
  prepare_int8(w, rows);
  share(w.rows, kInt8Tile, [&](int64_t begin, int64_t end) {
    multiply_int8(w, rows, begin, end, y.mutable_data_ptr<float>());
  });
  return y.to(x.scalar_type());
}

}  // namespace minillama

TORCH_LIBRARY_FRAGMENT(minillama, m) {
  // nf4_matmul with x rounded to int8 in pieces of 64 columns, and the levels to 112ths
  m.def("nf4_matmul_int8(Tensor x, Tensor codes, Tensor absmax, Tensor? absmax_scale, Tensor? absmax_offset, "
        "int out_features, int block_size) -> Tensor");
  // x (..., columns) in fp32, bf16 or fp16, codes (rows, columns) int8, absmax (rows) fp32 -> (..., rows)
  m.def("int8_matmul(Tensor x, Tensor codes, Tensor absmax, float threshold) -> Tensor");
  m.def("set_vectors(str name) -> ()", [](const std::string& name) {
    TORCH_CHECK(minillama::choose_vectors(name), "vectors ", name, " are not known or not in this processor: use best, ",
                "avx512, avx2 or plain");
  });
}

TORCH_LIBRARY_IMPL(minillama, CPU, m) {
  minillama::implement_rope(m);
  minillama::implement_nf4(m);
  m.impl("nf4_matmul_int8", &minillama::nf4_matmul_int8);
  m.impl("int8_matmul", &minillama::int8_matmul);
  minillama::implement_attention(m);
}
