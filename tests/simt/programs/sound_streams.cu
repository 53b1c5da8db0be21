// Sound programs about streams, events and memory that host and device share. Each prints one line, which a comment foretells
// by arithmetic.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <nvtx3/nvToolsExt.h>
#include <vector>

__global__ void scale(float *x, float by, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) x[i] *= by;
}
__global__ void sum_into(const float *x, const float *y, float *z, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) z[i] = x[i] + y[i];
}

struct FreeDevice {
  void operator()(void *p) const { cudaFree(p); }
};
template <class T>
using DevicePointer = std::unique_ptr<T[], FreeDevice>;
template <class T>
DevicePointer<T> allocate(size_t n) {
  T *p = nullptr;
  cudaMalloc(&p, n * sizeof(T));
  return DevicePointer<T>(p);
}

const int N = 1024, PARTS = 4;

// prints: pipelined 1047552
void pipelined() {
  float *pinned;
  cudaMallocHost((void **)&pinned, N * sizeof(float));
  for (int i = 0; i < N; ++i) pinned[i] = i;
  auto device = allocate<float>(N);
  cudaStream_t streams[PARTS];
  for (auto &s : streams) cudaStreamCreate(&s);
  const int part = N / PARTS;
  for (int p = 0; p < PARTS; ++p) {
    float *here = device.get() + p * part;
    cudaMemcpyAsync(here, pinned + p * part, part * sizeof(float), cudaMemcpyHostToDevice, streams[p]);
    scale<<<2, 64, 0, streams[p]>>>(here, 2, part);
    cudaMemcpyAsync(pinned + p * part, here, part * sizeof(float), cudaMemcpyDeviceToHost, streams[p]);
  }
  for (auto s : streams) cudaStreamSynchronize(s);
  printf("pipelined %.0f\n", std::accumulate(pinned, pinned + N, 0.0));
  for (auto s : streams) cudaStreamDestroy(s);
  cudaFreeHost(pinned);
}

// prints: events 9 positive
void events() {
  auto x = allocate<float>(64), y = allocate<float>(64), z = allocate<float>(64);
  std::vector<float> ones(64, 1.0f);
  cudaMemcpy(x.get(), ones.data(), 256, cudaMemcpyHostToDevice);
  cudaMemcpy(y.get(), ones.data(), 256, cudaMemcpyHostToDevice);
  cudaStream_t first, second;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEvent_t begin, scaled, end;
  cudaEventCreate(&begin), cudaEventCreateWithFlags(&scaled, cudaEventDisableTiming), cudaEventCreate(&end);
  cudaEventRecord(begin, second);
  scale<<<1, 64, 0, first>>>(x.get(), 4, 64);
  cudaEventRecord(scaled, first);
  scale<<<1, 64, 0, second>>>(y.get(), 5, 64);
  cudaStreamWaitEvent(second, scaled, 0);
  sum_into<<<1, 64, 0, second>>>(x.get(), y.get(), z.get(), 64);
  cudaEventRecord(end, second);
  cudaEventSynchronize(end);
  float milliseconds = -1;
  cudaEventElapsedTime(&milliseconds, begin, end);
  cudaMemcpy(ones.data(), z.get(), 256, cudaMemcpyDeviceToHost);
  printf("events %g %s\n", ones[63], milliseconds >= 0 ? "positive" : "negative");
  cudaEventDestroy(begin), cudaEventDestroy(scaled), cudaEventDestroy(end);
  cudaStreamDestroy(first), cudaStreamDestroy(second);
}

// prints: unified 10 1.5
__managed__ float shared_factor = 1.5f;
__managed__ int counted;
__global__ void count_and_scale(float *x, int n) {
  if (threadIdx.x < n) {
    x[threadIdx.x] *= shared_factor;
    atomicAdd(&counted, 1);
  }
}
void unified() {
  float *x;
  cudaMallocManaged(&x, 10 * sizeof(float));
  std::fill_n(x, 10, 1.0f);
  int device = 0;
  cudaGetDevice(&device);
  cudaMemPrefetchAsync(x, 10 * sizeof(float), device);
  count_and_scale<<<1, 32>>>(x, 10);
  cudaDeviceSynchronize();
  printf("unified %d %g\n", counted, x[9]);
  cudaFree(x);
}

// prints: callback 6
void CUDART_CB add_up(void *data) {
  float *all = static_cast<float *>(data);
  all[3] = all[0] + all[1] + all[2];
}
void callback() {
  float *all;
  cudaHostAlloc(&all, 4 * sizeof(float), cudaHostAllocDefault);
  all[0] = all[1] = all[2] = 1, all[3] = 0;
  auto device = allocate<float>(3);
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  cudaMemcpyAsync(device.get(), all, 12, cudaMemcpyHostToDevice, stream);
  scale<<<1, 3, 0, stream>>>(device.get(), 2, 3);
  cudaMemcpyAsync(all, device.get(), 12, cudaMemcpyDeviceToHost, stream);
  cudaLaunchHostFunc(stream, add_up, all);
  cudaStreamSynchronize(stream);
  printf("callback %g\n", all[3]);
  cudaFreeHost(all);
  cudaStreamDestroy(stream);
}

// prints: default stream 12
void default_stream() {  // it waits for the other, and the other for it
  auto x = allocate<float>(32);
  std::vector<float> host(32, 1.0f);
  cudaStream_t other;
  cudaStreamCreate(&other);
  cudaMemcpy(x.get(), host.data(), 128, cudaMemcpyHostToDevice);
  scale<<<1, 32, 0, other>>>(x.get(), 2, 32);
  scale<<<1, 32>>>(x.get(), 3, 32);
  scale<<<1, 32, 0, other>>>(x.get(), 2, 32);
  cudaMemcpy(host.data(), x.get(), 128, cudaMemcpyDeviceToHost);
  printf("default stream %g\n", host[31]);
  cudaStreamDestroy(other);
}

// prints: pageable 2
void pageable() {  // a copy to memory that is not pinned is over when the call returns
  auto x = allocate<float>(8);
  std::vector<float> host(8, 1.0f);
  cudaMemcpyAsync(x.get(), host.data(), 32, cudaMemcpyHostToDevice);
  scale<<<1, 8>>>(x.get(), 2, 8);
  cudaMemcpyAsync(host.data(), x.get(), 32, cudaMemcpyDeviceToHost);
  printf("pageable %g\n", host[7]);
}

// prints: zero copy 28
__global__ void square_all(const int *in, int *out) { out[threadIdx.x] = in[threadIdx.x] * in[threadIdx.x]; }
void zero_copy() {
  int *host, *device, results[8] = {0};
  cudaHostAlloc((void **)&host, 8 * sizeof(int), cudaHostAllocMapped | cudaHostAllocWriteCombined);
  cudaHostRegister(results, sizeof results, cudaHostRegisterMapped);
  for (int i = 0; i < 8; ++i) host[i] = i % 4;
  cudaHostGetDevicePointer((void **)&device, host, 0);
  square_all<<<1, 8>>>(device, results);
  while (cudaStreamQuery(0) == cudaErrorNotReady) {
  }
  printf("zero copy %d\n", std::accumulate(results, results + 8, 0));
  cudaHostUnregister(results);
  cudaFreeHost(host);
}

// prints: iterations 11
__global__ void relax(const int *now, int *next, bool *changed, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  if (i >= n) return;
  const int best = i > 0 && now[i - 1] < now[i] ? now[i - 1] : now[i];
  next[i] = best;
  if (best != now[i]) *changed = true;
}
void iterations() {
  const int n = 11;
  std::vector<int> host(n);
  for (int i = 0; i < n; ++i) host[i] = n - i;
  std::rotate(host.begin(), host.end() - 1, host.end());
  int *now, *next, rounds = 0;
  bool *changed, again = true;
  cudaMalloc(&now, n * 4), cudaMalloc(&next, n * 4), cudaMallocManaged(&changed, 1);
  cudaMemcpy(now, host.data(), n * 4, cudaMemcpyHostToDevice);
  while (again) {
    *changed = false;
    relax<<<(n + 3) / 4, 4>>>(now, next, changed, n);
    cudaDeviceSynchronize();
    again = *changed;
    std::swap(now, next);
    ++rounds;
  }
  printf("iterations %d\n", rounds);
  cudaFree(now), cudaFree(next), cudaFree(changed);
}

// prints: reuse 3 4
void reuse() {  // the same names and sizes again, after all was freed
  for (float by : {3.0f, 4.0f}) {
    auto x = allocate<float>(100);
    std::vector<float> host(100, 1.0f);
    cudaMemset(x.get(), 0, 400);
    cudaMemcpy(x.get(), host.data(), 400, cudaMemcpyHostToDevice);
    scale<<<4, 32>>>(x.get(), by, 100);
    cudaMemcpy(host.data(), x.get(), 400, cudaMemcpyDeviceToHost);
    printf(by == 3 ? "reuse %g" : " %g\n", host[99]);
  }
}

int main() {
  nvtxRangePushA("copies");
  pipelined();
  nvtxRangePop();
  events();
  unified();
  callback();
  default_stream();
  pageable();
  zero_copy();
  iterations();
  reuse();
  return cudaDeviceReset();
}
