// Exercise 32, third part: RoPE of q and k in one launch. `python3 run.py check 32` runs it on the emulator.
//
// q (tokens, heads, 2 half) and k (tokens, kv_heads, 2 half), fp32, contiguous; yq and yk the same. The half-split layout:
// columns i and i + half of a head are a pair. angle[token * half + i] is {cosine, sine} of pair i. Each pair (x0, x1)
// becomes (x0 cos - x1 sin, x1 cos + x0 sin). A block of 32 threads for each token; half is any number from 1 on.
//
// Values must agree within 1e-6, whatever the order of the threads. Where half is a multiple of 4, sectors of 32 bytes
// may be at most 1.02 times the least: so each angle is read once, and serves all heads.

__global__ void turn(const float* q, const float* k, const float2* angle, float* yq, float* yk, int heads, int kv_heads,
                     int half) {
#error your code here
}

extern "C" void rope(const float* q, const float* k, const float* table, float* yq, float* yk, int tokens, int heads,
                     int kv_heads, int half) {
  const auto* angle = reinterpret_cast<const float2*>(table);
  LAUNCH((turn), tokens, 32, 0, nullptr)(q, k, angle, yq, yk, heads, kv_heads, half);
}
