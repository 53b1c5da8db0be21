// The solution of lessons/exercises/ex31_reduction.cu: RMSNorm of the rows of a matrix.

__global__ void rms_norm_rows(const float* x, float* y, int n, float eps) {
  __shared__ float of_warp[4];
  const float* row = x + size_t(blockIdx.x) * n;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i] * row[i];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
  const float scale = rsqrtf(sum / n + eps);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[size_t(blockIdx.x) * n + i] = row[i] * scale;
}

extern "C" void rms_norm(const float* x, float* y, int rows, int n, float eps) {
  LAUNCH((rms_norm_rows), rows, 128, 0, nullptr)(x, y, n, eps);
}
