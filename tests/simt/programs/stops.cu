// Programs that end their kernel, one by argument: each is named with kernel, block, thread and line.
#include <cstdio>
#include <cstdlib>
#include <new>

__global__ void divide(int *x, int by) {
  if (threadIdx.x == 5) x[0] = 7 / by;  // division: 1
}

__global__ void least(int *x, int by) {
  x[0] = x[1] / by;  // division: 2
}

__device__ int remainder_of(int a, int b) {
  return a % b;  // division: 3
}
__global__ void in_a_function(int *x, int by) { x[0] = remainder_of(x[1], by); }

__global__ void wild(int *x, size_t by) {
  x[by << 40] = 1;  // illegal address: 4
}

__global__ void null(int *x) {
  int *nothing = (int *)(size_t)(x[0] & 0);
  *(volatile int *)nothing = 3;  // illegal address: 5
}

__global__ void copied(char *x, size_t far) {
  memcpy(x, x + (far << 40), 64);  // illegal address: 6
}

__global__ void called(int *x) {
  void (*function)() = (void (*)())(size_t)(x[0] & 0);
  function();  // illegal address: 7
  x[0] = 1;
}

__device__ __attribute__((noinline)) int deeper(volatile int *x, int n) {  // stack overflow: 8
  volatile int room[64];
  room[n % 64] = n;
  return n < 0 ? room[3] : deeper(x, n + 1) + room[n % 64];
}
__global__ void recursion(int *x) { x[0] = deeper(x, 0); }

__global__ void large(int *x, int n) {  // stack overflow: 9
  volatile char room[300000];
  room[n] = 1;
  x[0] = room[n + 1];
}

__global__ void greedy(int *x) {
  char *all = new char[size_t{1} << 45];  // out of memory: 10
  x[0] = all[0];
}

__global__ void waits(volatile int *flag) {
  if (blockIdx.x == 1) {
    if (threadIdx.x == 0) *flag = 1;
    return;
  }
  while (!__syncthreads_or(*flag)) {  // endless: 11
  }
}

__global__ void sleeps(volatile int *flag) {
  if (blockIdx.x == 1) *flag = 1;
  while (*flag == 0) __syncwarp();  // endless: 12
}

__global__ void spins(volatile int *flag) {
  while (*flag == 0) {  // endless: 13
  }
}

__global__ void throws(int *x) {
  if (x[0] == 0) throw 5;  // throws: 14
}

int main(int argc, char **argv) {
  int *x;
  cudaMalloc(&x, 1024);
  cudaMemset(x, 0, 1024);
  int least_of_all = -2147483647 - 1;
  const int which = argc > 1 ? atoi(argv[1]) : 0;
  switch (which) {
    case 1: divide<<<2, 32>>>(x, 0); break;
    case 2: cudaMemcpy(x + 1, &least_of_all, 4, cudaMemcpyHostToDevice), least<<<1, 1>>>(x, -1); break;
    case 3: in_a_function<<<1, 1>>>(x, 0); break;
    case 4: wild<<<1, 32>>>(x, 3); break;
    case 5: null<<<1, 32>>>(x); break;
    case 6: copied<<<1, 32>>>((char *)x, 3); break;
    case 7: called<<<1, 32>>>(x); break;
    case 8: recursion<<<1, 32>>>(x); break;
    case 9: large<<<1, 32>>>(x, 10); break;
    case 10: greedy<<<1, 32>>>(x); break;
    case 11: waits<<<3, 32>>>(x); break;
    case 12: sleeps<<<2, 32>>>(x); break;
    case 13: spins<<<1, 1>>>(x); break;
    case 14: throws<<<1, 1>>>(x); break;
  }
  const cudaError_t error = cudaDeviceSynchronize();
  printf("%d %s\n", int(error), cudaGetErrorString(error));
  return 0;
}
