// Sound programs about sums, scans and counts, in the manner of different authors. Each prints one line, which a comment
// foretells by arithmetic.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define gpuErrchk(ans) { gpuAssert((ans), __FILE__, __LINE__); }
inline void gpuAssert(cudaError_t code, const char *file, int line, bool abort = true) {
  if (code != cudaSuccess) {
    fprintf(stderr, "GPUassert: %s %s %d\n", cudaGetErrorString(code), file, line);
    if (abort) exit(code);
  }
}

static const int N = 5000;

template <class T>
struct DeviceArray {  // RAII, as many projects have one
  T *data = nullptr;
  size_t size;
  explicit DeviceArray(size_t n) : size(n) { gpuErrchk(cudaMalloc(&data, n * sizeof(T))); }
  explicit DeviceArray(const std::vector<T> &from) : DeviceArray(from.size()) {
    gpuErrchk(cudaMemcpy(data, from.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray &) = delete;
  ~DeviceArray() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> all(size);
    gpuErrchk(cudaMemcpy(all.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return all;
  }
};

// prints: interleaved 12497500
__global__ void interleaved(const int *in, int *out, int n) {
  extern __shared__ int s[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  s[threadIdx.x] = i < n ? in[i] : 0;
  for (int step = 1; step < blockDim.x; step *= 2) {
    __syncthreads();
    if (threadIdx.x % (2 * step) == 0) s[threadIdx.x] += s[threadIdx.x + step];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = s[0];
}

// prints: unrolled 12497500
template <unsigned int blockSize>
__global__ void unrolled(const int *g_idata, int *g_odata, unsigned int n) {
  __shared__ int sdata[blockSize];
  unsigned int tid = threadIdx.x, i = blockIdx.x * (blockSize * 2) + tid, gridSize = blockSize * 2 * gridDim.x;
  int mySum = 0;
  while (i < n) {
    mySum += g_idata[i];
    if (i + blockSize < n) mySum += g_idata[i + blockSize];
    i += gridSize;
  }
  sdata[tid] = mySum;
  __syncthreads();
  if (blockSize >= 256) { if (tid < 128) sdata[tid] = mySum = mySum + sdata[tid + 128]; __syncthreads(); }
  if (blockSize >= 128) { if (tid < 64) sdata[tid] = mySum = mySum + sdata[tid + 64]; __syncthreads(); }
  if (tid < 32) {
    mySum += sdata[tid + 32];
    for (int offset = warpSize / 2; offset > 0; offset /= 2) mySum += __shfl_down_sync(0xffffffff, mySum, offset);
  }
  if (tid == 0) g_odata[blockIdx.x] = mySum;
}

// prints: atomics 12497500 4999 0
__global__ void atomics(const int *x, int n, unsigned long long *sum, int *most, int *least) {
  for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += blockDim.x * gridDim.x) {
    atomicAdd(sum, (unsigned long long)x[i]);
    atomicMax(most, x[i]);
    atomicMin(least, x[i]);
  }
}

// prints: threadfence 12497500 12497500
__device__ unsigned int blocks_done;
__global__ void with_fence(const int *x, int *partial, int *out, int n) {
  __shared__ int sum;
  __shared__ bool is_last;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  int mine = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) mine += x[i];
  atomicAdd(&sum, mine);
  __syncthreads();
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicInc(&blocks_done, gridDim.x) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last) {
    int all = 0;
    for (int b = threadIdx.x; b < gridDim.x; b += blockDim.x) all += partial[b];
    for (int d = 16; d; d >>= 1) all += __shfl_xor_sync(~0u, all, d);
    if (threadIdx.x == 0) *out = all, blocks_done = 0;
  }
}

// prints: scan 0 0 1 3 6 130305
__global__ void blelloch(int *data, int n) {  // exclusive, in place, two elements a thread
  extern __shared__ int temp[];
  const int t = threadIdx.x;
  int offset = 1;
  temp[2 * t] = data[2 * t];
  temp[2 * t + 1] = data[2 * t + 1];
  for (int d = n >> 1; d > 0; d >>= 1) {
    __syncthreads();
    if (t < d) temp[offset * (2 * t + 2) - 1] += temp[offset * (2 * t + 1) - 1];
    offset *= 2;
  }
  if (t == 0) temp[n - 1] = 0;
  for (int d = 1; d < n; d *= 2) {
    offset >>= 1;
    __syncthreads();
    if (t < d) {
      const int left = offset * (2 * t + 1) - 1, right = offset * (2 * t + 2) - 1, kept = temp[left];
      temp[left] = temp[right];
      temp[right] += kept;
    }
  }
  __syncthreads();
  data[2 * t] = temp[2 * t];
  data[2 * t + 1] = temp[2 * t + 1];
}

// prints: double buffer 1 3 2080
__global__ void double_buffer(const int *in, int *out) {
  __shared__ int buffer[2][64];
  int from = 0;
  buffer[from][threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (int d = 1; d < 64; d <<= 1) {
    buffer[1 - from][threadIdx.x] = buffer[from][threadIdx.x] + (threadIdx.x >= d ? buffer[from][threadIdx.x - d] : 0);
    from = 1 - from;
    __syncthreads();
  }
  out[threadIdx.x] = buffer[from][threadIdx.x];
}

// prints: histogram 313 313 312 5000
__global__ void histogram(const unsigned char *data, unsigned int *bins, int n) {
  __shared__ unsigned int local[16];
  if (threadIdx.x < 16) local[threadIdx.x] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) atomicAdd(&local[data[i]], 1u);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
}

// prints: compaction 2500 6247500
__global__ void keep_odd(const int *in, int n, int *out, int *count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && in[i] % 2) out[atomicAdd(count, 1)] = in[i] - 1;
}

// prints: float maximum 2499.5
__device__ float atomicMaxFloat(float *address, float value) {  // the loop that CUDA's guide shows
  int *as_int = (int *)address, old = *as_int, assumed;
  do {
    assumed = old;
    old = atomicCAS(as_int, assumed, __float_as_int(fmaxf(value, __int_as_float(assumed))));
  } while (assumed != old);
  return __int_as_float(old);
}
__global__ void float_maximum(const int *x, int n, float *most) {
  __shared__ float in_block;
  if (threadIdx.x == 0) in_block = -1e30f;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
    atomicMaxFloat(&in_block, 0.5f * x[i]);
  __syncthreads();
  if (threadIdx.x == 0) atomicMaxFloat(most, in_block);
}

// prints: dot 41654167500
__global__ void dot(const double *a, const double *b, double *c, int n) {
  __shared__ double cache[128];
  int tid = threadIdx.x + blockIdx.x * blockDim.x;
  int cacheIndex = threadIdx.x;
  double temp = 0;
  while (tid < n) {
    temp += a[tid] * b[tid];
    tid += blockDim.x * gridDim.x;
  }
  cache[cacheIndex] = temp;
  __syncthreads();
  int i = blockDim.x / 2;
  while (i != 0) {
    if (cacheIndex < i) cache[cacheIndex] += cache[cacheIndex + i];
    __syncthreads();
    i /= 2;
  }
  if (cacheIndex == 0) c[blockIdx.x] = cache[0];
}

// prints: found yes no
__global__ void contains(const int *x, int n, int wanted, bool *found) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && x[i] % 50 == wanted) *found = true;  // many say so, all the same
}

int main() {
  std::vector<int> numbers(N);
  for (int i = 0; i < N; ++i) numbers[i] = i;
  DeviceArray<int> x(numbers), partial(64), one(1), two(1);
  const auto sum = [](const std::vector<int> &all, int n) {
    long total = 0;
    for (int i = 0; i < n; ++i) total += all[i];
    return total;
  };
  interleaved<<<(N + 255) / 256, 256, 256 * sizeof(int)>>>(x.data, partial.data, N);
  printf("interleaved %ld\n", sum(partial.host(), (N + 255) / 256));
  unrolled<256><<<5, 256>>>(x.data, partial.data, N);
  printf("unrolled %ld\n", sum(partial.host(), 5));
  {
    unsigned long long *total, result = 0;
    int most = -1, least = 99999;
    gpuErrchk(cudaMalloc((void **)&total, sizeof *total));
    gpuErrchk(cudaMemcpy(total, &result, sizeof result, cudaMemcpyHostToDevice));
    gpuErrchk(cudaMemcpy(one.data, &most, 4, cudaMemcpyHostToDevice));
    gpuErrchk(cudaMemcpy(two.data, &least, 4, cudaMemcpyHostToDevice));
    atomics<<<4, 96>>>(x.data, N, total, one.data, two.data);
    gpuErrchk(cudaPeekAtLastError());
    gpuErrchk(cudaMemcpy(&result, total, sizeof result, cudaMemcpyDeviceToHost));
    printf("atomics %llu %d %d\n", result, one.host()[0], two.host()[0]);
    gpuErrchk(cudaFree(total));
  }
  printf("threadfence");
  for (int again = 0; again < 2; ++again) {
    with_fence<<<7, 64>>>(x.data, partial.data, one.data, N);
    printf(" %d", one.host()[0]);
  }
  {
    DeviceArray<int> data(std::vector<int>(numbers.begin(), numbers.begin() + 512));
    blelloch<<<1, 256, 512 * sizeof(int)>>>(data.data, 512);
    const auto h = data.host();
    printf("\nscan %d %d %d %d %d %d\n", h[0], h[1], h[2], h[3], h[4], h[511]);
  }
  {
    DeviceArray<int> out(64);
    double_buffer<<<1, 64>>>(x.data + 1, out.data);
    const auto h = out.host();
    printf("double buffer %d %d %d\n", h[0], h[1], h[63]);
  }
  {
    std::vector<unsigned char> bytes(N);
    for (int i = 0; i < N; ++i) bytes[i] = i % 16;
    DeviceArray<unsigned char> data(bytes);
    DeviceArray<unsigned> bins(16);
    gpuErrchk(cudaMemset(bins.data, 0, 16 * sizeof(unsigned)));
    histogram<<<3, 128>>>(data.data, bins.data, N);
    const auto h = bins.host();
    unsigned all = 0;
    for (unsigned b : h) all += b;
    printf("histogram %u %u %u %u\n", h[0], h[7], h[8], all);
  }
  {
    DeviceArray<int> kept(N);  // half of it stays unwritten
    gpuErrchk(cudaMemset(one.data, 0, sizeof(int)));
    keep_odd<<<(N + 127) / 128, 128>>>(x.data, N, kept.data, one.data);
    const int count = one.host()[0];
    printf("compaction %d %ld\n", count, sum(kept.host(), count));
  }
  {
    DeviceArray<float> most(std::vector<float>{-1.0f});
    float_maximum<<<4, 64>>>(x.data, N, most.data);
    printf("float maximum %g\n", most.host()[0]);
  }
  {
    std::vector<double> a(numbers.begin(), numbers.end());
    DeviceArray<double> da(a), db(a), dc(32);
    dot<<<32, 128>>>(da.data, db.data, dc.data, N);
    double total = 0;
    for (double part : dc.host()) total += part;
    printf("dot %.0f\n", total);
  }
  printf("found");
  for (int wanted : {3, 50}) {
    bool *flag, answer = false;
    gpuErrchk(cudaMalloc(&flag, sizeof(bool)));
    gpuErrchk(cudaMemset(flag, 0, sizeof(bool)));
    contains<<<20, 256>>>(x.data, N, wanted, flag);
    gpuErrchk(cudaMemcpy(&answer, flag, sizeof answer, cudaMemcpyDeviceToHost));
    printf(answer ? " yes" : " no");
    gpuErrchk(cudaFree(flag));
  }
  printf("\n");
  gpuErrchk(cudaDeviceSynchronize());
  return 0;
}
