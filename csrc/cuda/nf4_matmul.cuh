// Products with a weight kept in NF4 (arXiv 2305.14314): y = x W^T, and for the gradient dx = dy W. W stays frozen.
//
// Cost: 2 M N K FLOPs; compulsory bytes 0.516 N K (4.127 bits a weight with double quantization) + e M K + e M N.
// A weight is level[code] * absmax of its block of the flattened tensor, so a block may cross rows. Arithmetic in fp32:
// nothing is rounded to the dtype of x before the result is, and nothing overflows that the result does not.
//
//   version 1: a thread per element of the result, which walks along K (or N). Neighbouring threads of the product read
//   codes K/2 bytes apart: 32 bytes fetched for each byte used. The gradient's threads read neighbouring codes.
//   Sums are formed 64 numbers at a time, whatever the size of a block, which keeps their rounding errors small.
//
// Where rows are made of whole vectors version 2, nf4_vectors.cuh, runs, and for 8 rows of x or more in 16 bits version 3,
// nf4_tensor_cores.cuh; version 1 does the others.
#pragma once

#include "../launch.h"
#include "../nf4_table.h"

namespace minillama::kernels {

constexpr int kNF4Threads = 64, kNF4Chunk = 64;
static __constant__ const float kNF4Levels[16] = {MINILLAMA_NF4_LEVELS};
static __constant__ const float kDynamicMap[256] = {MINILLAMA_DYNAMIC_MAP};

struct NF4Tables {  // in shared memory: threads of a warp look up different entries
  float level[16], dynamic[256];
};

__device__ inline void load_tables(NF4Tables& tables) {
  for (int i = threadIdx.x; i < 16; i += blockDim.x) tables.level[i] = kNF4Levels[i];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) tables.dynamic[i] = kDynamicMap[i];
  __syncthreads();
}

// The scale of a block. Product and sum are rounded one by one, as the reference does: fused, bits would differ.
__device__ inline float nf4_absmax(const NF4& w, const NF4Tables& tables, int64_t block) {
  if (w.absmax) return w.absmax[block];
  const float centred = __fmul_rn(tables.dynamic[w.absmax_codes[block]], w.absmax_scale[block / 256]);
  return __fadd_rn(centred, *w.absmax_offset);
}

__device__ inline float nf4_level(const NF4& w, const NF4Tables& tables, int64_t element) {
  const int pair = w.codes[element / 2];
  return tables.level[element % 2 ? pair & 15 : pair >> 4];  // the first of two lies in the high nibble
}

template <class T>
__global__ void nf4_matmul_v1(const T* __restrict__ x, NF4 w, T* __restrict__ y, int64_t M) {
  __shared__ NF4Tables tables;
  load_tables(tables);
  const int64_t n = int64_t(blockIdx.x) * kNF4Threads + threadIdx.x, K = w.columns;
  if (n >= w.rows) return;
  for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
    float sum = 0;
    for (int64_t k = 0; k < K;) {
      const int64_t start = n * K, chunk_end = min(K, k + kNF4Chunk);
      float of_chunk = 0;
      while (k < chunk_end) {
        const int64_t block = (start + k) / w.block_size, end = min(chunk_end, (block + 1) * w.block_size - start);
        const float absmax = nf4_absmax(w, tables, block);
        for (; k < end; ++k) of_chunk += float(x[m * K + k]) * (nf4_level(w, tables, start + k) * absmax);
      }
      sum += of_chunk;
    }
    y[m * w.rows + n] = T(sum);
  }
}

template <class T>
__global__ void nf4_matmul_backward_v1(const T* __restrict__ dy, NF4 w, T* __restrict__ dx, int64_t M) {
  __shared__ NF4Tables tables;
  load_tables(tables);
  const int64_t k = int64_t(blockIdx.x) * kNF4Threads + threadIdx.x, K = w.columns, N = w.rows;
  if (k >= K) return;
  for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
    float sum = 0;
    for (int64_t n = 0; n < N;) {
      const int64_t end = min(N, n + kNF4Chunk);
      float of_chunk = 0;
      for (; n < end; ++n) {
        const int64_t element = n * K + k;
        const float weight = nf4_level(w, tables, element) * nf4_absmax(w, tables, element / w.block_size);
        of_chunk += float(dy[m * N + n]) * weight;
      }
      sum += of_chunk;
    }
    dx[m * K + k] = T(sum);
  }
}

}  // namespace minillama::kernels
