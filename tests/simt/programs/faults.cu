// Programs that go wrong, one by argument.
#include <cassert>
#include <cstdio>
#include <cstdlib>

__global__ void rotate(int *x) {
  __shared__ int tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = tile[(threadIdx.x + 63) % 64];  // nobody waited for the line above
}

__global__ void spin(volatile int *flag) {
  while (*flag == 0) {
  }
}

__global__ void half_waits() {
  if (threadIdx.x < 32) __syncthreads();
  __shfl_sync(0xffffffff, 1, 40 % 32);
  if (threadIdx.x >= 32) __syncthreads();
}

__global__ void inner(int *x) { *x = 1; }
__global__ void outer(int *x) { inner<<<1, 1>>>(x), cudaDeviceSynchronize(); }

__global__ void checks(int n) { assert(threadIdx.x < n); }

int main(int argc, char **argv) {
  int *x, host[64];
  cudaMalloc(&x, sizeof host);
  for (int i = 0; i < 64; ++i) host[i] = i;
  switch (argc > 1 ? atoi(argv[1]) : 0) {
    case 0: {
      cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice);
      rotate<<<1, 64>>>(x);
      cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost);
      int wrong = 0;
      for (int i = 1; i < 64; ++i) wrong += host[i] != i - 1;
      printf("%d of 63 wrong\n", wrong);
      return wrong ? 5 : 0;
    }
    case 1:
      cudaMemset(x, 0, sizeof host);
      spin<<<1, 1>>>(x);
      return cudaDeviceSynchronize() == cudaErrorLaunchFailure ? 0 : 9;
    case 2: half_waits<<<1, 64>>>(); return cudaDeviceSynchronize() == cudaSuccess;
    case 3: outer<<<1, 1>>>(x); return 0;
    case 4: for (;;) fputs("again and again and again and again and again and again\n", stdout);
    case 5: for (;;) {}
    case 6: return 41;
    case 7: *(volatile int *)nullptr = 1;
    case 8: inner<<<1, 4096>>>(x); return 0;  // and never asks
    case 9: printf("%d\n", int(cudaMalloc(&x, size_t{1} << 45))); return 0;
    case 11: printf("printed before"), inner<<<1, 1>>>(x); abort();
    case 10: checks<<<1, 8>>>(3); return cudaDeviceSynchronize() == cudaErrorAssert ? 0 : 1;
  }
}
