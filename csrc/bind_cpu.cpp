// CPU kernels as operators: tensors to pointers, work to threads, nothing else.

#include <ATen/Parallel.h>

#include <algorithm>

#include "bind_rope.h"
#include "cpu/rope.h"

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

}  // namespace minillama

TORCH_LIBRARY_IMPL(minillama, CPU, m) { minillama::implement_rope(m); }
