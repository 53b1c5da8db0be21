// The solution of lessons/exercises/ex34_flash_attention.cu: a warp for each query, online softmax, tiles of 32 keys.

__global__ void attend(const float* q, const float* k, const float* v, float* o, float* lse, int T) {
  __shared__ float Q[8][32], K[32][33], V[32][33];  // rows of 33: a column is then free of bank conflicts
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int query = blockIdx.x * 8 + warp, end = min(T, int(blockIdx.x) * 8 + 8);  // no query of ours sees key `end`
  Q[warp][lane] = query < T ? q[query * 32 + lane] : 0.0f;
  float m = -INFINITY, l = 0, mixed = 0;
  for (int start = 0; start < end; start += 32) {
    __syncthreads();  // nobody reads the previous tile any more
    for (int row = warp; row < 32; row += 8) {
      const bool inside = start + row < end;
      K[row][lane] = inside ? k[(start + row) * 32 + lane] : 0.0f;
      V[row][lane] = inside ? v[(start + row) * 32 + lane] : 0.0f;
    }
    __syncthreads();  // the tile is complete
    float s = 0;
    for (int c = 0; c < 32; ++c) s += Q[warp][c] * K[lane][c];
    s = start + lane <= query ? s * rsqrtf(32.0f) : -INFINITY;
    float highest = fmaxf(m, s);
    for (int lanes = 16; lanes > 0; lanes /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, lanes));
    const float alpha = expf(m - highest), p = expf(s - highest);
    l = alpha * l + p;  // each lane adds up its own keys
    mixed *= alpha;
    for (int j = 0; j < 32; ++j) mixed += __shfl_sync(~0u, p, j) * V[j][lane];
    m = highest;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) l += __shfl_xor_sync(~0u, l, lanes);
  if (query >= T) return;
  o[query * 32 + lane] = mixed / l;
  if (lane == 0) lse[query] = m + logf(l);
}

extern "C" void attention(const float* q, const float* k, const float* v, float* o, float* lse, int T) {
  LAUNCH((attend), (T + 7) / 8, 256, 0, nullptr)(q, k, v, o, lse, T);
}
