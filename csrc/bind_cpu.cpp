// CPU kernels as operators: tensors to pointers, work to threads, nothing else.

#include <ATen/Parallel.h>

#include <algorithm>

#include "bind_nf4.h"
#include "bind_rope.h"
#include "cpu/nf4_absmax.h"
#include "cpu/nf4_matmul.h"
#include "cpu/rope.h"
#include "cpu/vectors.h"

namespace minillama {

// 32768 elements take some 10 microseconds, about what waking a thread costs: no smaller share is given to one.
constexpr int64_t kElementsPerTask = 32768;

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

}  // namespace minillama

TORCH_LIBRARY_FRAGMENT(minillama, m) {
  m.def("set_vectors(str name) -> ()", [](const std::string& name) {
    TORCH_CHECK(minillama::choose_vectors(name), "vectors ", name, " are not known or not in this processor: use best, ",
                "avx512, avx2 or plain");
  });
}

TORCH_LIBRARY_IMPL(minillama, CPU, m) {
  minillama::implement_rope(m);
  minillama::implement_nf4(m);
}
