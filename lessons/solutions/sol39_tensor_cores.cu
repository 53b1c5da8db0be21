// The solution of lessons/exercises/ex39_tensor_cores.cu: a product on tensor cores, in two stages of swizzled tiles.

__device__ int place(int row, int chunk) { return row * 64 + (chunk ^ row % 8) * 8; }

// Begins to copy 64 rows of 64 columns; what lies beyond the matrix becomes 0.
__device__ void copy(__nv_bfloat16* tile, const __nv_bfloat16* matrix, int first, int rows, int k, int K) {
  for (int i = threadIdx.x; i < 512; i += 128) {
    const int row = i / 8, chunk = i % 8;
    const bool inside = first + row < rows && k + chunk * 8 < K;
    cp_async<16>(tile + place(row, chunk), matrix + (first + row) * K + k + chunk * 8, inside ? 16 : 0);
  }
}

__global__ void multiply(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int M, int N, int K) {
  __shared__ __align__(128) __nv_bfloat16 X[2][4096], W[2][4096];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  float c[8][4] = {};
  copy(X[0], x, m0, M, 0, K);
  copy(W[0], w, n0, N, 0, K);
  cp_async_commit();
  for (int k = 0, now = 0; k < K; k += 64, now ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (k + 64 < K) {
      copy(X[now ^ 1], x, m0, M, k + 64, K);
      copy(W[now ^ 1], w, n0, N, k + 64, K);
      cp_async_commit();
    }
    for (int i = 0; i < 4; ++i) {
      unsigned a[4], b[4];
      ldmatrix_x4(a, X[now] + place(16 * warp + lane % 16, 2 * i + lane / 16));
      for (int n = 0; n < 8; n += 2) {
        ldmatrix_x4(b, W[now] + place(8 * n + lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
        const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_bf16_16816(c[n], a, low);
        mma_bf16_16816(c[n + 1], a, high);
      }
    }
  }
  for (int i = 0; i < 32; ++i) {
    const int row = m0 + 16 * warp + lane / 4 + i / 2 % 2 * 8, column = n0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < M && column < N) y[row * N + column] = c[i / 4][i % 4];
  }
}

extern "C" void product(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int M, int N, int K) {
  LAUNCH((multiply), dim3((N + 63) / 64, (M + 63) / 64), 128, 0, nullptr)(x, w, y, M, N, K);
}
