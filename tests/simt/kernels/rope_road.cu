// RoPE versions 1 and 4 on the profiler's bench: q (T, H, d) and k (T, K, d), bf16 or fp32.

#include "cuda/rope.cuh"
#include "cuda/rope_vectors.cuh"

using namespace minillama::kernels;

template <class T>
static void both(DType dtype, const T* q, const T* k, const float* cos, const float* sin, T* yq, T* yk, int tokens,
                 int heads, int kv_heads, int width, int rotary, int version, bool interleaved, bool inverse) {
  const int64_t d = width;
  const RopeRows Q = {{q, tokens * heads * d, d, heads * d}, yq, tokens * heads * d, d, heads * d, heads};
  const RopeRows K = {{k, tokens * kv_heads * d, d, kv_heads * d}, yk, tokens * kv_heads * d, d, kv_heads * d, kv_heads};
  if (version == 4)
    return rope_qk(dtype, Q, K, cos, sin, nullptr, tokens, 1, tokens, width, rotary, interleaved, inverse, nullptr);
  for (const RopeRows& part : {Q, K})
    LAUNCH((rope_v1<T>), dim3(unsigned(tokens)), kRopeThreads, 0, nullptr)(
        static_cast<const T*>(part.x.data), cos, sin, static_cast<T*>(part.y), part.x.batch, part.x.head, part.x.row,
        tokens, int(part.heads), width / 2, tokens, interleaved);
}

extern "C" void bf16(const __nv_bfloat16* q, const __nv_bfloat16* k, const float* cos, const float* sin, __nv_bfloat16* yq, __nv_bfloat16* yk, int tokens, int heads, int kv_heads, int width, int rotary, int version, bool interleaved, bool inverse) {
  both(DType::bf16, q, k, cos, sin, yq, yk, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse);
}
extern "C" void fp32(const float* q, const float* k, const float* cos, const float* sin, float* yq, float* yk, int tokens, int heads, int kv_heads, int width, int rotary, int version, bool interleaved, bool inverse) {
  both(DType::f32, q, k, cos, sin, yq, yk, tokens, heads, kv_heads, width, rotary, version, interleaved, inverse);
}
