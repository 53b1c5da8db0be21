// Programs with one mistake each about memory, the argument says which. The line at fault bears the name of the mistake.
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                       \
  do {                                                                                    \
    cudaError_t status = (call);                                                          \
    if (status != cudaSuccess) std::printf("%s\n", cudaGetErrorString(status));           \
  } while (0)

// ---- out of bounds

__global__ void saxpy(int n, float a, const float *x, float *y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i] = a * x[i] + y[i];  // out of bounds: 0
}

template <int BLOCK>
__global__ void neighbours(const int *in, int *out) {
  __shared__ int window[BLOCK];
  window[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = window[threadIdx.x] + window[threadIdx.x + 1];  // out of bounds: 1
}

__global__ void polynomial(const double *x, double *y) {
  double power[5];
  power[0] = 1;
  for (int k = 1; k <= 5; ++k) power[k] = power[k - 1] * x[threadIdx.x];  // out of bounds: 2
  y[threadIdx.x] = power[0] + power[4];
}

struct Image {
  unsigned char *pixels;
  int width, height;
  __device__ unsigned char &at(int row, int column) { return pixels[row * width + column]; }
};
__global__ void invert(Image image) {
  const int x = threadIdx.x + blockIdx.x * blockDim.x, y = threadIdx.y + blockIdx.y * blockDim.y;
  if (x < image.width && y <= image.height) image.at(y, x) = 255 - image.at(y, x);  // out of bounds: 3
}

__global__ void far_index(float *grid, int n) {
  const int row = 50000 * (blockIdx.x + 1), column = 50001;  // the product is too large for an int
  grid[row * column % n] = 1;  // out of bounds: 4
}

extern __shared__ int bins[];
__global__ void histogram(const int *data, int *out, int how_many) {
  if (threadIdx.x < how_many) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[data[threadIdx.x]], 1);  // out of bounds: 5
  __syncthreads();
  if (threadIdx.x < how_many) out[threadIdx.x] = bins[threadIdx.x];
}

__constant__ float filter[7];
__device__ float taps[7];
__global__ void convolve(const float *x, float *y) {
  float sum = 0;
  for (int k = 0; k < 8; k++) sum += x[threadIdx.x + k] * taps[k];  // out of bounds: 6
  y[threadIdx.x] = sum + filter[0];
}

// ---- alignment

__global__ void four_at_once(const float *x, float4 *y) {
  y[threadIdx.x] = *reinterpret_cast<const float4 *>(x + threadIdx.x);  // misaligned: 7
}

__global__ void packed(const unsigned char *bytes, int *sum) {
  const unsigned char *body = bytes + 1;  // behind a tag of one byte
  sum[threadIdx.x] = ((const int *)body)[threadIdx.x];  // misaligned: 8
}

// ---- nobody wrote it

__global__ void accumulate(const float *x, float *total, int n) {
  float sum;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];  // uninitialised: 9
  total[threadIdx.x] = sum;
}

__global__ void guarded(const int *x, int *y, int n) {
  int value;
  const int i = threadIdx.x;
  if (i < n) value = x[i];
  y[i] = __shfl_down_sync(0xffffffffu, value, 1);  // uninitialised: 10
}

__global__ void tail(const float *x, float *y) {
  float part[8];
  for (int k = 0; k < 7; ++k) part[k] = x[8 * threadIdx.x + k];
  float most = part[0];
  for (int k = 1; k < 8; ++k) most = fmaxf(most, part[k]);  // uninitialised: 11
  y[threadIdx.x] = most;
}

__global__ void add_into(const int *x, int *sums) { sums[threadIdx.x] += x[threadIdx.x]; }  // uninitialised: 12

__global__ void count(const int *x, unsigned *counter) {
  if (x[threadIdx.x] > 3) atomicAdd(counter, 1u);  // uninitialised: 13
}

__global__ void half_of_shared(const float *x, float *y) {
  __shared__ float stage[64];
  if (threadIdx.x < 32) stage[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = stage[threadIdx.x] * 2;  // uninitialised: 14
}

__global__ void fill(int *x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = i;
}

// ---- memory that is no more

__global__ void increment(int *x) { x[threadIdx.x]++; }  // use after free: 17

int sum_of(const std::vector<int> &all) {
  int sum = 0;
  for (int one : all) sum += one;  // uninitialised: 15
  return sum;
}

int main(int argc, char **argv) {
  float *x, *y, *small;
  int *i, *j;
  CHECK(cudaMalloc(&x, 1024));
  CHECK(cudaMalloc(&y, 1024));
  CHECK(cudaMalloc(&small, 100 * sizeof(float)));
  CHECK(cudaMalloc(&i, 1024));
  CHECK(cudaMalloc(&j, 1024));
  std::vector<int> host(256);
  for (int k = 0; k < 256; ++k) host[k] = k % 64;
  CHECK(cudaMemcpy(i, host.data(), 1024, cudaMemcpyHostToDevice));
  CHECK(cudaMemset(x, 0, 1024));
  CHECK(cudaMemset(small, 0, 400));
  switch (argc > 1 ? std::atoi(argv[1]) : -1) {
    case 0: saxpy<<<2, 64>>>(100, 2.0f, x, small); break;
    case 1: neighbours<64><<<1, 64>>>(i, j); break;
    case 2: polynomial<<<1, 32>>>((double *)x, (double *)y); break;
    case 3: {
      Image image = {(unsigned char *)small, 20, 20};
      invert<<<dim3(2, 2), dim3(16, 16)>>>(image);
      break;
    }
    case 4: far_index<<<1, 1>>>(x, 253); break;
    case 5: histogram<<<1, 64, 60 * sizeof(int)>>>(i, j, 60); break;
    case 6: convolve<<<1, 32>>>(x, y); break;
    case 7: four_at_once<<<1, 16>>>(x, (float4 *)y); break;
    case 8: packed<<<1, 8>>>((unsigned char *)x, j); break;
    case 9: accumulate<<<1, 32>>>(x, y, 256); break;
    case 10: guarded<<<1, 32>>>(i, j, 20); break;
    case 11: tail<<<1, 16>>>(x, y); break;
    case 12: add_into<<<1, 64>>>(i, j); break;
    case 13: count<<<1, 64>>>(i, (unsigned *)y); break;
    case 14: half_of_shared<<<1, 64>>>(x, y); break;
    case 15: {  // as many blocks as fit, one too few
      const int n = 250;
      fill<<<n / 64, 64>>>(j, n);
      std::vector<int> out(n);
      CHECK(cudaMemcpy(out.data(), j, n * sizeof(int), cudaMemcpyDeviceToHost));
      std::printf("%d\n", sum_of(out));
      break;
    }
    case 16: {
      int *shared;
      CHECK(cudaMallocManaged(&shared, 100 * sizeof(int)));
      fill<<<1, 64>>>(shared, 100);
      CHECK(cudaDeviceSynchronize());
      long sum = 0;
      for (int k = 0; k < 100; ++k) sum += shared[k];  // uninitialised: 16
      std::printf("%ld\n", sum);
      break;
    }
    case 17: {
      cudaFree(i);
      int *other;
      cudaMalloc(&other, 1024);
      increment<<<1, 32>>>(i);
      break;
    }
    case 18: {
      cudaFree(j);
      cudaMemcpy(host.data(), j, 64, cudaMemcpyDeviceToHost);  // use after free: 18
      break;
    }
    case 19: {
      cudaFree(x);
      float *alias = x;
      if (argc > 1) cudaFree(alias);  // double free: 19
      break;
    }
  }
  CHECK(cudaDeviceSynchronize());
}
