// Programs with one mistake each about what the host does and what it may assume, the argument says which. The line at fault
// bears the name of the mistake.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

__global__ void square(float *x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= x[i];
}

__global__ void add(const float *__restrict__ a, const float *__restrict__ b, float *__restrict__ c, int n) {  // aliased restrict: 7
  for (int i = threadIdx.x; i < n; i += blockDim.x) c[i] = a[i] + b[(i + 1) % n];
}

__global__ void set(float *x, float value) { x[threadIdx.x] = value; }
__global__ void double_into(const float *x, float *y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }  // race: 2
__global__ void increase(float *x) { x[threadIdx.x] += 1; }  // race: 3
__global__ void both(float *x, float *y) { x[threadIdx.x] = y[threadIdx.x] = 3; }

int main(int argc, char **argv) {
  const int n = 64, bytes = n * sizeof(float);
  float *d, *e, *pinned, *managed, host[n];
  cudaMalloc(&d, bytes);
  cudaMalloc(&e, bytes);
  cudaMallocHost(&pinned, bytes);
  cudaMallocManaged(&managed, bytes);
  std::iota(host, host + n, 1.0f);
  std::copy(host, host + n, managed);
  std::copy(host, host + n, pinned);
  cudaMemcpy(d, host, bytes, cudaMemcpyHostToDevice);
  cudaMemcpy(e, host, bytes, cudaMemcpyHostToDevice);
  cudaStream_t one, two, apart;
  cudaStreamCreate(&one);
  cudaStreamCreate(&two);
  cudaStreamCreateWithFlags(&apart, cudaStreamNonBlocking);
  cudaEvent_t event;
  cudaEventCreate(&event);
  float result = 0;
  switch (argc > 1 ? atoi(argv[1]) : -1) {
    case 0:
      square<<<2, 32>>>(managed, n);
      result = managed[5];  // race: 0
      break;
    case 1:
      cudaMemcpyAsync(pinned, d, bytes, cudaMemcpyDeviceToHost, one);
      result = pinned[7];  // race: 1
      break;
    case 2:
      set<<<1, n, 0, one>>>(d, 4.0f);
      double_into<<<1, n, 0, two>>>(d, e);
      break;
    case 3:  // the event comes too early
      cudaEventRecord(event, one);
      both<<<1, n, 0, one>>>(d, e);
      cudaStreamWaitEvent(two, event, 0);
      increase<<<1, n, 0, two>>>(e);
      break;
    case 4:
      increase<<<1, n, 0, apart>>>(d);
      cudaMemcpy(host, d, bytes, cudaMemcpyDeviceToHost);  // race: 4
      result = host[3];
      break;
    case 5:
      cudaMemcpyAsync(d, pinned, bytes, cudaMemcpyHostToDevice, one);
      pinned[0] = 7;  // race: 5
      cudaStreamSynchronize(one);
      break;
    case 6:
      square<<<2, 32, 0, one>>>(managed, n);
      cudaStreamSynchronize(two);
      result = managed[1];  // race: 6
      break;
    case 7: add<<<1, 32>>>(d, e, d, n); break;
    case 8: add<<<1, 2048>>>(d, d, e, n); break;  // launch: 8
    case 9: add<<<dim3(1, 0), 32>>>(d, d, e, n); break;  // launch: 9
    case 10: set<<<1, 32, 100000>>>(d, 1.0f); break;  // launch: 10
  }
  printf("%g\n", result);
  cudaDeviceSynchronize();
}
