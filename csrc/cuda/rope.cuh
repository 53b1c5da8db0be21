// RoPE: every pair (x0, x1) of every head becomes (x0 cos - x1 sin, x1 cos + x0 sin) (arXiv 2104.09864, eq. 34).
//
// Cost for element size e: 3 FLOPs an element; compulsory bytes 2 e B T H d for x and y, and 4 B T d for the table.
// Arithmetic in fp32, rounded once. The backward pass is this kernel with -sin.
//
//   version 1: a block per token, a thread per pair. All heads of a token read one row of the table: after the first
//   head it comes from the cache. Interleaved, a warp reads 64 neighbouring elements in two strided requests.
#pragma once

#include "../launch.h"

namespace minillama::kernels {

constexpr int kRopeThreads = 128;

template <class T>
__global__ void rope_v1(const T* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                        T* __restrict__ y, int64_t stride_batch, int64_t stride_head, int64_t stride_token, int tokens,
                        int heads, int half, int64_t tables, bool interleaved) {
  const int64_t token = blockIdx.x, row = token % tables * half;
  x += token / tokens * stride_batch + token % tokens * stride_token;
  y += token * heads * (2 * half);
  for (int pair = threadIdx.x; pair < heads * half; pair += kRopeThreads) {
    const int head = pair / half, i = pair % half;
    const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const T* from = x + head * stride_head;
    T* to = y + int64_t(head) * (2 * half);
    const float x0 = float(from[first]), x1 = float(from[second]), c = cos[row + i], s = sin[row + i];
    to[first] = T(x0 * c - x1 * s);
    to[second] = T(x1 * c + x0 * s);
  }
}

void rope(DType dtype, Strided x, const float* cos, const float* sin, void* y, int64_t batch, int64_t tokens,
          int64_t heads, int64_t width, int64_t tables, bool interleaved, void* stream) {
  if (batch * tokens * heads * width == 0) return;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH((rope_v1<T>), dim3(unsigned(batch * tokens)), kRopeThreads, 0, static_cast<cudaStream_t>(stream))(
        static_cast<const T*>(x.data), cos, sin, static_cast<T*>(y), x.batch, x.head, x.row, int(tokens), int(heads),
        int(width / 2), tables, interleaved);
  });
  check_launch("rope");
}

}  // namespace minillama::kernels
