// The CPU kernel of RoPE: plain loops over pointers, no tensors.
#pragma once

#include "../cuda/kernels.h"

namespace minillama {

// Turns tokens [begin, end) of the batch * tokens that there are; see kernels.h for the arguments. Rows of the table are
// taken as they are named: the caller has checked them. Scalar is float, c10::BFloat16 or c10::Half.
template <typename Scalar>
void rope_cpu(const kernels::RopeRows& q, const kernels::RopeRows& k, const kernels::RopeTable& table,
              const kernels::RopeShape& shape, int64_t begin, int64_t end);

}  // namespace minillama
