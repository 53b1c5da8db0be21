// The solution of lessons/exercises/ex33_dequant_matmul.cu: a warp for each output, 8 codes a lane in one load.

__global__ void decode(const float* x, const uint8_t* codes, const float* absmax, const float* level, float* y, int N,
                       int K) {
  DYNAMIC_SHARED(float, X);
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = level[threadIdx.x];
  for (int k = threadIdx.x; k < K; k += blockDim.x) X[k] = x[k];
  __syncthreads();
  const int lane = threadIdx.x % 32, n = blockIdx.x * 8 + threadIdx.x / 32;
  if (n >= N) return;
  const unsigned* words = reinterpret_cast<const unsigned*>(codes) + n * (K / 8);
  float sum = 0;
  for (int word = lane; word < K / 8; word += 32) {
    const unsigned eight = words[word];  // 4 bytes: 8 codes
    float of_word = 0;
    for (int i = 0; i < 4; ++i) {
      const unsigned pair = eight >> (8 * i) & 255;
      of_word += table[pair >> 4] * X[8 * word + 2 * i] + table[pair & 15] * X[8 * word + 2 * i + 1];
    }
    sum += of_word * absmax[n * (K / 64) + word / 8];  // the scale waits until the sum is there
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (lane == 0) y[n] = sum;
}

extern "C" void product(const float* x, const uint8_t* codes, const float* absmax, const float* level, float* y, int N,
                        int K) {
  LAUNCH((decode), (N + 7) / 8, 256, K * sizeof(float), nullptr)(x, codes, absmax, level, y, N, K);
}
