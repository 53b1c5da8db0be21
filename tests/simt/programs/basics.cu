// A program with its own main(): each case checks itself against plain C++ and returns how many went wrong.
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <cuda_runtime.h>
#include <cooperative_groups.h>

namespace cg = cooperative_groups;

#define CHECK(call)                                                                  \
  do {                                                                               \
    cudaError_t error = (call);                                                      \
    if (error != cudaSuccess) {                                                      \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      exit(EXIT_FAILURE);                                                            \
    }                                                                                \
  } while (0)

static int wrong = 0;
static void expect(bool good, const char *what) {
  printf("%-40s %s\n", what, good ? "ok" : "WRONG");  // a launch in text is no launch: k<<<1, 2>>>(x)
  wrong += !good;
}

__global__ void add(const float *a, const float *b, float *c, int n, const float *also = nullptr, float factor = 1) {
  int i = blockDim.x * blockIdx.x + threadIdx.x;
  if (i < n) c[i] = factor * (a[i] + b[i]) + (also ? also[i] : 0);
}

__global__ void shifts(unsigned *out, unsigned n, unsigned char small) {
  __shared__ unsigned words[1 << 3];
  constexpr int width = 1 << 2 << 1;
  enum { kOne = 1 };
  const int minus = -5;
  unsigned long long wide = 1;
  out[0] = 7u << n, out[1] = 7u >> n, out[2] = unsigned(minus >> n), out[3] = unsigned(wide << n >> 32);
  out[4] = unsigned(wide << 2 * n), out[5] = small << n - 24, out[6] = kOne << n | kOne << 1, out[7] = width;
  unsigned kept = 6, gone = 6;
  kept <<= n - 31, gone >>= n, words[0] = static_cast<unsigned>(kept) >> 1;
  out[8] = kept, out[9] = gone, out[10] = words[0], out[11] = -1 << n - 1, out[12] = 1u << n - 33;
}

template <int TILE, typename T>
__global__ void multiply(T *c, const T *a, const T *b, int n) {
  __shared__ T as[TILE][TILE], bs[TILE][TILE];
  int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
  T sum = 0;
  for (int t = 0; t < n; t += TILE) {
    as[threadIdx.y][threadIdx.x] = a[row * n + t + threadIdx.x];
    bs[threadIdx.y][threadIdx.x] = b[(t + threadIdx.y) * n + column];
    __syncthreads();
    for (int k = 0; k < TILE; ++k) sum += as[threadIdx.y][k] * bs[k][threadIdx.x];
    __syncthreads();
  }
  c[row * n + column] = sum;
}

template <typename T>
__global__ void total(const T *x, T *out, int n) {
  extern __shared__ __align__(sizeof(double)) unsigned char raw[];
  T *partial = reinterpret_cast<T *>(raw);
  T sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
    for (int offset = 16; offset > 0; offset /= 2) sum += warp.shfl_down(sum, offset);
    if (threadIdx.x == 0) *out = sum;
  }
}

extern __shared__ unsigned int bins[];
__global__ void histogram(const unsigned char *data, unsigned int *counts, int n) {
  for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[data[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(counts + i, bins[i]);
}

__constant__ float weights[4];
__device__ int calls;
__managed__ int managed;
__global__ void weigh(float *x, const float *maybe) {
  if (threadIdx.x == 0) atomicAdd(&calls, maybe ? 100 : 1);
  x[threadIdx.x] *= weights[threadIdx.x % 4];
  if (threadIdx.x == 0) managed = 7;
}

static void vectors() {
  const int n = 1003;
  std::vector<float> a(n), b(n), c(n);
  for (int i = 0; i < n; ++i) a[i] = i, b[i] = 2 * i;
  float *da, *db, *dc;
  CHECK(cudaMalloc(&da, n * sizeof(float)));
  CHECK(cudaMalloc((void **)&db, n * sizeof(float)));
  CHECK(cudaMalloc(&dc, n * sizeof(float)));
  CHECK(cudaMemcpy(da, a.data(), n * sizeof(float), cudaMemcpyHostToDevice));
  CHECK(cudaMemcpyAsync(db, b.data(), n * sizeof(float), cudaMemcpyHostToDevice, 0));
  int threads = 128;
  add<<<(n + threads - 1) / threads, threads>>>(da, db, dc, n, 0, 1);
  CHECK(cudaGetLastError());
  CHECK(cudaMemcpy(c.data(), dc, n * sizeof(float), cudaMemcpyDeviceToHost));
  bool good = true;
  for (int i = 0; i < n; ++i) good &= c[i] == 3 * i;
  expect(good, "vector sum");
  add<<<1, 2048>>>(da, db, dc, n);
  expect(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "too large a block is refused");
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess, "... and forgotten");
  expect(cudaMemcpy(c.data(), dc, 5000 * sizeof(float), cudaMemcpyDeviceToHost) == cudaErrorInvalidValue,
         "too long a copy is refused");
  cudaGetLastError();
  CHECK(cudaFree(da)); CHECK(cudaFree(db)); CHECK(cudaFree(dc));
}

static void matrices() {
  const int n = 32, tile = 16;
  double *a, *b, *c;
  CHECK(cudaMallocManaged(&a, n * n * sizeof(double)));
  CHECK(cudaMallocManaged(&b, n * n * sizeof(double)));
  CHECK(cudaMallocManaged(&c, n * n * sizeof(double)));
  for (int i = 0; i < n * n; ++i) a[i] = i % 7, b[i] = i % 5;
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start)); CHECK(cudaEventCreate(&stop));
  CHECK(cudaEventRecord(start, stream));
  multiply<tile, double>
      <<<dim3(n / tile, n / tile),
         dim3(tile, tile), 0, stream>>>(c,
                                        a, b, n);
  CHECK(cudaEventRecord(stop, stream)); CHECK(cudaEventSynchronize(stop));
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
  bool good = milliseconds >= 0;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int k = 0; k < n; ++k) sum += a[i * n + k] * b[k * n + j];
      good &= c[i * n + j] == sum;
    }
  expect(good, "tiled product, launch over four lines");
}

template <typename T>
static void sums(const char *what) {
  const int n = 777;
  T *x, *out;
  CHECK(cudaMallocManaged(&x, n * sizeof(T)));
  CHECK(cudaMallocManaged(&out, sizeof(T)));
  for (int i = 0; i < n; ++i) x[i] = T(i);
  total<<<1, 256, 8 * sizeof(T)>>>(x, out, n);  // which total: by the arguments
  CHECK(cudaDeviceSynchronize());
  expect(*out == T(n * (n - 1) / 2), what);
  void (*chosen)(const T *, T *, int) = &total<T>;
  *out = 0;
  (*chosen)<<<1, 64, (2 > 1) ? 2 * sizeof(T) : 0>>>(x, out, n);
  CHECK(cudaDeviceSynchronize());
  expect(*out == T(n * (n - 1) / 2), "... through a pointer");
}

static void counts() {
  const int n = 5000;
  unsigned char *data;
  unsigned int *found, expected[256] = {0};
  CHECK(cudaMallocManaged(&data, n));
  CHECK(cudaMallocManaged(&found, sizeof expected));
  for (int i = 0; i < n; ++i) expected[data[i] = (i * i) % 251]++;
  CHECK(cudaMemset(found, 0, sizeof expected));
  histogram<<<3, 64, 256 * sizeof(unsigned int)>>>(data, found, n);
  CHECK(cudaDeviceSynchronize());
  expect(!memcmp(found, expected, sizeof expected), "histogram with atomics");
}

static void symbols() {
  const float w[4] = {1, 2, 3, 4};
  CHECK(cudaMemcpyToSymbol(weights, w, sizeof w));
  float *x;
  CHECK(cudaMallocManaged(&x, 64 * sizeof(float)));
  for (int i = 0; i < 64; ++i) x[i] = 1;
  weigh<<<1, 64>>>(x, NULL);
  int called = -1;
  CHECK(cudaMemcpyFromSymbol(&called, calls, sizeof called));
  expect(x[6] == 3 && called == 1 && managed == 7, "variables of the device");
}

static void shift_by_the_width() {
  unsigned *out, bad = 0;
  const unsigned right[13] = {0, 0, ~0u, 1, 0, 0x4100, 2, 8, 12, 0, 6, 1u << 31, 0};
  CHECK(cudaMallocManaged(&out, sizeof right));
  shifts<<<1, 1>>>(out, 32, 0x41);
  CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < 13; ++i) bad |= (out[i] != right[i]) << i;
  expect(bad == 0, "shifts by the width and more");
  CHECK(cudaFree(out));
}

int main(int argc, char **argv) {
  int devices = 0;
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceCount(&devices));
  CHECK(cudaGetDeviceProperties(&properties, 0));
  expect(devices == 1 && properties.warpSize == 32, "one device");
  vectors();
  matrices();
  sums<float>("sum of floats, dynamic shared memory");
  sums<int>("sum of integers");
  counts();
  symbols();
  shift_by_the_width();
  printf("%d wrong, %d argument(s)\n", wrong, argc - 1);
  return wrong;
}
