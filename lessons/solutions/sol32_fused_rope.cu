// The solution of lessons/exercises/ex32_fused_rope.cu: a lane keeps its angle while it goes from head to head.

__global__ void turn(const float* q, const float* k, const float2* angle, float* yq, float* yk, int heads, int kv_heads,
                     int half) {
  const int token = blockIdx.x;
  for (int i = threadIdx.x; i < half; i += 32) {
    const float2 a = angle[token * half + i];
    for (int head = 0; head < heads + kv_heads; ++head) {
      const bool of_q = head < heads;
      const int row = of_q ? token * heads + head : token * kv_heads + head - heads;
      const float* x = (of_q ? q : k) + row * 2 * half;
      float* y = (of_q ? yq : yk) + row * 2 * half;
      const float x0 = x[i], x1 = x[i + half];
      y[i] = x0 * a.x - x1 * a.y;
      y[i + half] = x1 * a.x + x0 * a.y;
    }
  }
}

extern "C" void rope(const float* q, const float* k, const float* table, float* yq, float* yk, int tokens, int heads,
                     int kv_heads, int half) {
  const auto* angle = reinterpret_cast<const float2*>(table);
  LAUNCH((turn), tokens, 32, 0, nullptr)(q, k, angle, yq, yk, heads, kv_heads, half);
}
