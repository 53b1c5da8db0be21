// Access patterns whose counts follow by hand: what each must count stands in test_simt_profile.py.

template <int Stride, int Offset, class T>
__global__ void read_strided(const T* x, float* y) {
  y[threadIdx.x] = float(x[threadIdx.x * Stride + Offset]);
}
extern "C" void row(const float* x, float* y) { LAUNCH((read_strided<1, 0, float>), 1, 32, 0, nullptr)(x, y); }
extern "C" void shifted(const float* x, float* y) { LAUNCH((read_strided<1, 1, float>), 1, 32, 0, nullptr)(x, y); }
extern "C" void strided(const float* x, float* y) { LAUNCH((read_strided<8, 0, float>), 1, 32, 0, nullptr)(x, y); }
extern "C" void broadcast(const float* x, float* y) { LAUNCH((read_strided<0, 5, float>), 1, 32, 0, nullptr)(x, y); }
extern "C" void halves(const __half* x, float* y) { LAUNCH((read_strided<1, 0, __half>), 1, 32, 0, nullptr)(x, y); }
extern "C" void doubles(const double* x, float* y) { LAUNCH((read_strided<1, 0, double>), 1, 32, 0, nullptr)(x, y); }

template <int Offset>
__global__ void copy_vectors(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" void vectors(const float* x, float* y) {
  LAUNCH((copy_vectors<0>), 1, 32, 0, nullptr)(reinterpret_cast<const float4*>(x), reinterpret_cast<float4*>(y));
}

__global__ void read_twice(const float* x, float* y) {  // each block reads the same 32 floats
  y[blockIdx.x * 32 + threadIdx.x] = x[threadIdx.x];
}
extern "C" void again(const float* x, float* y) { LAUNCH((read_twice), 4, 32, 0, nullptr)(x, y); }

__global__ void in_place(float* x) { x[threadIdx.x] *= 2; }
extern "C" void doubled(float* x) { LAUNCH((in_place), 1, 32, 0, nullptr)(x); }

__global__ void naive(const float* x, float* y, int n) {
  const int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
  y[c * n + r] = x[r * n + c];
}
template <int Pad>
__global__ void tiled(const float* x, float* y, int n) {
  __shared__ float tile[32][32 + Pad];
  int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
  tile[threadIdx.y][threadIdx.x] = x[r * n + c];
  __syncthreads();
  c = blockIdx.y * 32 + threadIdx.x, r = blockIdx.x * 32 + threadIdx.y;
  y[r * n + c] = tile[threadIdx.x][threadIdx.y];
}
extern "C" void transpose(const float* x, float* y, int n, int version) {
  const dim3 grid(n / 32, n / 32), block(32, 32);
  if (version == 0) LAUNCH((naive), grid, block, 0, nullptr)(x, y, n);
  if (version == 1) LAUNCH((tiled<0>), grid, block, 0, nullptr)(x, y, n);
  if (version == 2) LAUNCH((tiled<1>), grid, block, 0, nullptr)(x, y, n);
}

template <class T, int Stride>
__global__ void shared_strided(float* y) {
  __shared__ __align__(16) T memory[32 * Stride + 1];
  for (int i = threadIdx.x; i < 32 * Stride + 1; i += 32) memory[i] = T{};
  __syncwarp();
  const T value = memory[threadIdx.x * Stride];  // counted
  y[threadIdx.x] = *reinterpret_cast<const float*>(&value);
}
extern "C" void banks(float* y, int version) {
  if (version == 0) LAUNCH((shared_strided<float, 0>), 1, 32, 0, nullptr)(y);
  if (version == 1) LAUNCH((shared_strided<float, 1>), 1, 32, 0, nullptr)(y);
  if (version == 2) LAUNCH((shared_strided<float, 2>), 1, 32, 0, nullptr)(y);
  if (version == 3) LAUNCH((shared_strided<float, 3>), 1, 32, 0, nullptr)(y);
  if (version == 4) LAUNCH((shared_strided<float, 8>), 1, 32, 0, nullptr)(y);
  if (version == 5) LAUNCH((shared_strided<float, 32>), 1, 32, 0, nullptr)(y);
  if (version == 6) LAUNCH((shared_strided<float2, 1>), 1, 32, 0, nullptr)(y);
  if (version == 7) LAUNCH((shared_strided<float2, 2>), 1, 32, 0, nullptr)(y);
  if (version == 8) LAUNCH((shared_strided<float4, 1>), 1, 32, 0, nullptr)(y);
  if (version == 9) LAUNCH((shared_strided<float4, 2>), 1, 32, 0, nullptr)(y);
}

template <int Width>
__global__ void matrices(float* y) {
  __shared__ __align__(16) unsigned short rows[32][Width];
  for (int c = 0; c < Width; ++c) rows[threadIdx.x][c] = 0;
  __syncwarp();
  unsigned r[4];
  ldmatrix_x4(r, rows[threadIdx.x]);  // counted
  float c[4] = {};
  const unsigned b[2] = {r[0], r[1]};
  mma_bf16_16816(c, r, b);
  mma_bf16_16816(c, r, b);
  y[threadIdx.x] = c[0];
}
extern "C" void ldmatrix(float* y, int width) {
  if (width == 16) LAUNCH((matrices<16>), 1, 32, 0, nullptr)(y);
  if (width == 24) LAUNCH((matrices<24>), 1, 32, 0, nullptr)(y);
  if (width == 64) LAUNCH((matrices<64>), 1, 32, 0, nullptr)(y);
}

__global__ void one_counter(int* count) { atomicAdd(count, 1); }
extern "C" void atomics(int* count) { LAUNCH((one_counter), 2, 64, 0, nullptr)(count); }

__global__ void copied(const float* x, float* y) {
  __shared__ __align__(16) float tile[128];
  cp_async<16>(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" void async_copy(const float* x, float* y) { LAUNCH((copied), 1, 32, 0, nullptr)(x, y); }

__global__ void branches(const float* x, float* y) {
  y += 32 * blockIdx.x;
  if (threadIdx.x % 4 == 0) y[threadIdx.x] = x[threadIdx.x];  // 8 lanes
  for (int i = 0; i < int(threadIdx.x) / 16; ++i) y[threadIdx.x] = x[i];  // the upper 16 lanes, once
  __syncthreads();
  y[threadIdx.x] = 1;
}
extern "C" void divergent(const float* x, float* y) { LAUNCH((branches), 3, 32, 0, nullptr)(x, y); }
