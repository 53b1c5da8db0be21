// Launches as programs write them: in macros, templates and lambdas, through tables, with attributes; the vector types, and
// wishes for shared memory. Each checks itself; the exit code is how many went wrong.
#include <cstdio>
#include <cuda_fp8.h>  // included, and not used


static int wrong = 0;
static int* data;
static void expect(int wanted, const char* what) {
  cudaDeviceSynchronize();
  if (data[3] != wanted) printf("%s: %d, wanted %d\n", what, data[3], wanted), ++wrong;
  data[3] = 0;
}

__global__ void k_one(int* p) { p[threadIdx.x] = 1; }
__global__ void k_two(int* p, int n) { p[threadIdx.x] = 2 * n; }
template <int N, class T> __global__ void fill(T* p) { p[threadIdx.x] = N; }
template <class T> __global__ void fill_with(T* p, T value) { p[threadIdx.x] = value; }
template <class F> __global__ void each(int n, F f) { if (threadIdx.x < n) f(threadIdx.x); }
template <class... Rest> __global__ void sum_of(int* p, Rest... rest) { p[threadIdx.x] = (0 + ... + rest); }

#define GO(name) name<<<1, 32>>>(data)
#define PASTE(n, x) k_##n<<<1, 32>>>(data, x)
#define PASTE_BOTH(a, b) a##_##b<<<1, 32>>>(data)
#define CONFIG 1, 32
#define RUN(kernel, ...) do { kernel<<<CONFIG>>>(__VA_ARGS__); printf("", #kernel); } while (0)
#define LAUNCH(grid, block, kernel, ...) \
  do { \
    kernel<<<(grid), \
             (block), 0, 0>>>(__VA_ARGS__); \
    if (cudaGetLastError() != cudaSuccess) { printf("failed " #kernel "\n"); ++wrong; } \
  } while (0)
#define FILL(N) fill<N, int><<<1, 32>>>(data); \
                expect(N, "fill<" #N ">")
#define CASE(N) case N: fill<N><<<1, 32>>>(data); break;
#define EACH(n, ...) each<<<1, 32>>>(n, [=] __device__ (int i) __VA_ARGS__)
#define L3(k, g, b) k <<< g , b >>>

struct Runner {
  int* p;
  template <class K, class... A> void go(K k, A... a) const { k<<<1, 32>>>(p, a...); }
  template <int N> void filled() const { fill<N><<<1, 32>>>(p); }
};
template <class T> void typed(T value) { fill_with<T><<<1, 32>>>((T*)data, value); }
template <void (*K)(int*)> void by_parameter() { K<<<1, 32>>>(data); }

__noinline__ __device__ int twice(int x) { return 2 * x; }
__global__ void by_dim3(uint3* out) {
  const dim3 block(blockDim), thread = threadIdx;
  const uint3 size = block;
  *out = make_uint3(size.x, thread.y, twice(block.z));
}

// Sizes and alignments of CUDA's programming guide, table "Alignment Requirements".
#define SAME(type, bytes, alignment) (sizeof(type) != bytes || alignof(type) != alignment)
static int vector_types_wrong() {
  const char1 a = make_char1(-1);
  const uchar3 b = make_uchar3(1, 2, 255);
  const long4 c = make_long4(1, 2, 3, -4);
  const ulong2 d = make_ulong2(5, ~0ul);
  int count = !(a.x == -1 && b.z == 255 && c.w == -4 && d.y == ~0ul && make_short1(3).x == 3 && make_double1(0.5).x == 0.5);
  count += SAME(char1, 1, 1) + SAME(char2, 2, 2) + SAME(uchar3, 3, 1) + SAME(uchar4, 4, 4) + SAME(short1, 2, 2);
  count += SAME(ushort2, 4, 4) + SAME(short3, 6, 2) + SAME(ushort4, 8, 8) + SAME(int1, 4, 4) + SAME(uint2, 8, 8);
  count += SAME(int3, 12, 4) + SAME(uint4, 16, 16) + SAME(long1, 8, 8) + SAME(ulong2, 16, 16) + SAME(long3, 24, 8);
  count += SAME(ulong4, 32, 16) + SAME(longlong1, 8, 8) + SAME(ulonglong2, 16, 16) + SAME(longlong3, 24, 8);
  count += SAME(ulonglong4, 32, 16) + SAME(float1, 4, 4) + SAME(float2, 8, 8) + SAME(float3, 12, 4);
  count += SAME(float4, 16, 16) + SAME(double1, 8, 8) + SAME(double2, 16, 16) + SAME(double3, 24, 8);
  count += SAME(double4, 32, 16) + SAME(dim3, 12, 4);
  uint3* out;
  cudaMallocManaged(&out, sizeof *out);
  by_dim3<<<1, dim3(3, 1, 2)>>>(out);
  cudaDeviceSynchronize();
  return count + !(out->x == 3 && out->z == 4);
}

static int carve_outs_wrong() {
  const auto carve_out = cudaFuncAttributePreferredSharedMemoryCarveout;
  int count = cudaFuncSetAttribute(k_one, carve_out, cudaSharedmemCarveoutMaxShared) != cudaSuccess;
  count += cudaFuncSetAttribute((const void*)k_one, carve_out, cudaSharedmemCarveoutDefault) != cudaSuccess;
  count += cudaFuncSetAttribute(fill<3, int>, carve_out, 50) != cudaSuccess;
  count += cudaFuncSetAttribute(k_one, carve_out, 101) != cudaErrorInvalidValue;
  count += cudaFuncSetAttribute(k_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10) != cudaSuccess;
  count += cudaFuncSetAttribute(k_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10) != cudaErrorInvalidValue;
  count += cudaFuncSetCacheConfig(k_one, cudaFuncCachePreferShared) != cudaSuccess;
  count += cudaDeviceSetCacheConfig(cudaFuncCachePreferL1) != cudaSuccess;
  int grid, block, most;
  cudaOccupancyMaxPotentialBlockSizeVariableSMem(&grid, &block, k_one, [](int threads) { return threads * 200; });
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  cudaGetLastError();
  return count + !(block % 32 == 0 && block * 200 <= most && (block + 32) * 200 > most);
}

__global__ void runs_over(int* p, int n) { p[int(threadIdx.x) - n] = p[int(threadIdx.x) + n] = 7; }
// A GPU says nothing of a kernel that leaves its array by a little, nor does that end the program.
static int neighbours_wrong() {
  int *a, *b, back[64];
  cudaMalloc(&a, 400), cudaMalloc(&b, 400);
  cudaMemset(b, 1, 400);
  runs_over<<<1, 64>>>(a, 1000);
  int count = cudaDeviceSynchronize() != cudaSuccess;
  cudaMemcpy(back, b, sizeof back, cudaMemcpyDeviceToHost);
  for (int x : back) count += x != 0x01010101;
  return count + (cudaFree(a) != cudaSuccess) + (cudaFree(b) != cudaSuccess);
}

int main() {
  cudaMallocManaged(&data, 128);
  GO(k_one); expect(1, "GO");
  PASTE(two, 3); expect(6, "PASTE");
  PASTE_BOTH(k, one); expect(1, "PASTE_BOTH");
  RUN(k_two, data, 4); expect(8, "RUN");
  RUN((fill<7, int>), data); expect(7, "RUN template");
  LAUNCH(1, 32, k_two, data, 5); expect(10, "LAUNCH");
  LAUNCH(dim3(1), dim3(32, 1), k_one, data); expect(1, "LAUNCH dim3");
  FILL(9);
  for (int i = 11; i < 13; ++i) {
    switch (i) { CASE(11) CASE(12) }
    expect(i, "CASE");
  }
  int* p = data;
  EACH(5, { p[i] = 40 + i; }); expect(43, "EACH");
  L3(k_two, 1, 32)(data, 8); expect(16, "L3");
  Runner r{data};
  r.go(k_two, 10); expect(20, "go");
  r.filled<13>(); expect(13, "filled");
  typed(14); expect(14, "typed");
  by_parameter<k_one>(); expect(1, "by_parameter");
  auto lambda = [&](auto k, int x) { k<<<1, 32>>>(data, x); };
  lambda(k_two, 11); expect(22, "lambda");
  [] { k_one<<<1, 32>>>(data); }(); expect(1, "in a lambda");
  void (*table[])(int*) = {k_one, fill<15, int>};
  for (auto k : table) k<<<1, 32>>>(data);
  expect(15, "table");
  sum_of<<<1, 32>>>(data, 1, 2.0f, short(3)); expect(6, "sum_of");
  cudaLaunchConfig_t config = {};
  config.gridDim = 1, config.blockDim = 32;
  cudaLaunchKernelEx(&config, k_two, data, 12); expect(24, "cudaLaunchKernelEx");
  wrong += vector_types_wrong() + carve_outs_wrong() + neighbours_wrong();
  printf("%d wrong\n", wrong);
  return wrong;
}
