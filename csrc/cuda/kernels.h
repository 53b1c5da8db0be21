// The kernels as plain functions: raw pointers in, nothing of CUDA or PyTorch in the signatures. The bindings see only
// this; nvcc compiles the bodies for a GPU, g++ and clang++ compile the same bodies over the emulator in simt/.
#pragma once

#include <cstdint>

namespace minillama::kernels {

enum class DType { f32, f16, bf16 };

// A tensor (batch, head, row, width) by its strides in elements; the last dimension has stride 1.
struct Strided {
  const void* data;
  int64_t batch, head, row;
};

// y (B, T, H, d) contiguous = x turned by cos, sin (tables, d/2), where token n = b T + t uses row n % tables.
void rope(DType dtype, Strided x, const float* cos, const float* sin, void* y, int64_t batch, int64_t tokens,
          int64_t heads, int64_t width, int64_t tables, bool interleaved, void* stream);

// A weight (rows, columns) in NF4; see minillama/quant/nf4.py. Either absmax, or the other three (double quantization).
struct NF4 {
  const uint8_t* codes;
  const float* absmax;
  const uint8_t* absmax_codes;
  const float *absmax_scale, *absmax_offset;
  int64_t rows, columns, block_size;
};

// y (M, rows) = x (M, columns) W^T, and dx (M, columns) = dy (M, rows) W; all contiguous.
void nf4_matmul(DType dtype, const void* x, NF4 w, void* y, int64_t M, void* stream);
void nf4_matmul_backward(DType dtype, const void* dy, NF4 w, void* dx, int64_t M, void* stream);

struct AttentionShape {
  int64_t batch, heads, kv_heads, queries, keys, width;
  float scale;
  bool causal;
};
constexpr int64_t kMaxHeadWidth = 128;

// out (B, H, T, d) and lse (B, H, T), contiguous.
void flash_attention(DType dtype, Strided q, Strided k, Strided v, void* out, float* lse, AttentionShape shape,
                     void* stream);
// dq like q, dk and dv like k, contiguous; `delta` is scratch like lse, d_lse may be null.
void flash_attention_backward(DType dtype, Strided q, Strided k, Strided v, Strided d_out, const void* out,
                              const float* lse, const float* d_lse, float* delta, void* dq, void* dk, void* dv,
                              AttentionShape shape, void* stream);

}  // namespace minillama::kernels
