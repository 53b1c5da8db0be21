// RoPE's four versions on the profiler's bench: q (T, H, d) and k (T, K, d), a row of the table for each token.

#include "cuda/rope_vectors.cuh"

using namespace minillama::kernels;

template <class T>
static void both(DType dtype, const T* q, const T* k, const float* rotations, T* yq, T* yk, int tokens, int heads,
                 int kv_heads, int width, int rotary, int version, bool interleaved, bool inverse) {
  const int64_t d = width;
  const RopeRows Q = {{q, tokens * heads * d, d, heads * d}, yq, tokens * heads * d, d, heads * d, heads};
  const RopeRows K = {{k, tokens * kv_heads * d, d, kv_heads * d}, yk, tokens * kv_heads * d, d, kv_heads * d, kv_heads};
  if (version == 4) {
    rope(dtype, Q, K, {rotations, nullptr, tokens, rotary / 2, 0, 0}, {1, tokens, width, interleaved, inverse}, nullptr);
  } else {
    rope_version(version, dtype, q, rotations, yq, tokens, heads, width / 2, interleaved, nullptr);
    rope_version(version, dtype, k, rotations, yk, tokens, kv_heads, width / 2, interleaved, nullptr);
  }
}

extern "C" void bf16(const __nv_bfloat16* q, const __nv_bfloat16* k, const float* rotations, __nv_bfloat16* yq, __nv_bfloat16* yk, int tokens, int heads, int kv_heads, int width, int rotary, int version, bool interleaved, bool inverse) {
  both(DType::bf16, q, k, rotations, yq, yk, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse);
}
extern "C" void fp32(const float* q, const float* k, const float* rotations, float* yq, float* yk, int tokens, int heads, int kv_heads, int width, int rotary, int version, bool interleaved, bool inverse) {
  both(DType::f32, q, k, rotations, yq, yk, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse);
}

// q alone, (2, tokens, 1, 16), by positions that nobody has checked.
extern "C" void placed(const float* q, const float* rotations, const int64_t* positions, float* yq, int tokens, int rows, bool in_vectors) {
  const int64_t d = 16;
  const RopeRows Q = {{q, tokens * d, d, d}, yq, tokens * d, d, d, 1};
  rope(DType::f32, Q, {}, {rotations, positions, rows, in_vectors ? 8 : 7, tokens, 0}, {2, tokens, d, true, false}, nullptr);
}
