// Programs with one mistake each about threads that work together, the argument says which. The line at fault bears the name
// of the mistake.
#include <cooperative_groups.h>
#include <cstdio>
#include <cstdlib>

namespace cg = cooperative_groups;

// ---- races in shared memory

__global__ void reverse(int *data) {
  __shared__ int copy[64];
  copy[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = copy[63 - threadIdx.x];  // race: 0
}

template <typename T>
__global__ void tree_sum(const T *in, T *out) {
  extern __shared__ unsigned char raw[];
  T *partial = reinterpret_cast<T *>(raw);
  const unsigned t = threadIdx.x;
  partial[t] = in[t];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half >>= 1)
    if (t < half) partial[t] += partial[t + half];  // race: 1
  if (t == 0) out[0] = partial[0];
}

constexpr int TILE = 8;
__global__ void multiply(const float *a, const float *b, float *c, int n) {
  __shared__ float as[TILE][TILE], bs[TILE][TILE];
  const int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
  float sum = 0.0f;
  for (int step = 0; step < n / TILE; ++step) {
    as[threadIdx.y][threadIdx.x] = a[row * n + step * TILE + threadIdx.x];    // race: 2
    bs[threadIdx.y][threadIdx.x] = b[(step * TILE + threadIdx.y) * n + column];
    __syncthreads();
    for (int k = 0; k < TILE; ++k) sum += as[threadIdx.y][k] * bs[k][threadIdx.x];
  }
  c[row * n + column] = sum;
}

__global__ void count_large(const int *x, int *out) {
  __shared__ int many;
  if (threadIdx.x == 0) many = 0;
  __syncthreads();
  if (x[threadIdx.x] > 10) many++;  // race: 3
  __syncthreads();
  if (threadIdx.x == 0) *out = many;
}

__global__ void hillis_steele(const int *in, int *out) {
  __shared__ int scan[64];
  scan[threadIdx.x] = in[threadIdx.x];
  for (int offset = 1; offset < 64; offset *= 2) {
    __syncthreads();
    if (threadIdx.x >= offset) scan[threadIdx.x] += scan[threadIdx.x - offset];  // race: 4
  }
  out[threadIdx.x] = scan[threadIdx.x];
}

__global__ void last_of_warp(const float *x, float *y) {
  __shared__ float sums[2];
  float v = x[threadIdx.x];
  for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(~0u, v, d);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  if (threadIdx.x == 0) y[0] = sums[0] + sums[1];  // race: 5
}

__device__ void warp_finish(int *shared, int lane) {  // as one wrote it before lanes could run apart
  shared[lane] += shared[lane + 16];
  shared[lane] += shared[lane + 8];  // race: 6
}
__global__ void implicit_warp(const int *in, int *out) {
  __shared__ int s[64];
  s[threadIdx.x] = in[threadIdx.x];
  s[threadIdx.x + 32] = 0;
  __syncwarp();
  warp_finish(s, threadIdx.x);
  out[threadIdx.x] = s[threadIdx.x];
}

struct Message {
  int value;
  int ready;
};
__global__ void flag_without_fence(int *out) {
  __shared__ Message m;
  if (threadIdx.x == 0) m.value = 0, m.ready = 0;
  __syncthreads();
  if (threadIdx.x == 32) {
    m.value = 42;
    atomicExch(&m.ready, 1);
  } else if (threadIdx.x == 0) {
    while (atomicAdd(&m.ready, 0) == 0) {
    }
    *out = m.value;  // race: 7
  }
}

// ---- races in global memory

__global__ void histogram(const int *data, int *bins, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    bins[data[i] % 8]++;  // race: 8
}

__global__ void smooth_in_place(float *x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i > 0 && i < n - 1) x[i] = (x[i - 1] + x[i] + x[i + 1]) / 3;  // race: 9
}

__global__ void total(const float *x, float *sum) {
  const float mine = x[blockIdx.x * blockDim.x + threadIdx.x];
  const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  float part = mine;
  for (int i = warp.size() / 2; i > 0; i /= 2) part += warp.shfl_down(part, i);
  if (warp.thread_rank() == 0) *sum += part;  // race: 10
}

__device__ unsigned arrived = 0;
__global__ void last_block_sums(const int *x, int *partial, int *out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = x[blockIdx.x] + 1;
    last = atomicAdd(&arrived, 1u) == gridDim.x - 1;  // and no __threadfence() before it
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b];  // race: 11
    *out = sum;
  }
}

__global__ void two_phases(int *a, int *b, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  a[i] = 2 * i + 1;
  __syncthreads();  // of one block only
  b[i] = a[n - 1 - i];  // race: 12
}

// ---- barriers and warps

__global__ void early_return(const int *x, int *y, int n) {
  const int i = threadIdx.x;
  if (i < n) {
    y[i] = x[i];
    __syncthreads();  // barrier: 13
    y[i] += y[n - 1 - i];
  } else {
    y[i] = 0;
    __syncthreads();  // barrier: 13
  }
}

__global__ void warps_part(int *y) {
  if (threadIdx.x < 32) {
    __syncthreads();  // barrier: 14
    y[threadIdx.x] = 1;
  }
  cg::thread_block block = cg::this_thread_block();
  cg::tiled_partition<64>(block).sync();  // barrier: 14
}

__global__ void mask_of_all(const int *x, int *y) {
  const int lane = threadIdx.x;
  if (lane < 20) y[lane] = __shfl_sync(0xffffffffu, x[lane], (lane + 1) % 32);  // stopped: 15
}

__global__ void not_in_the_mask(int *y) {
  if (threadIdx.x < 24) y[threadIdx.x] = __ballot_sync(0x0000ffffu, threadIdx.x & 1);  // stopped: 16
}

__global__ void two_operations(int *y) {
  const unsigned all = 0xffffffff;
  if (threadIdx.x < 16) y[threadIdx.x] = __any_sync(all, threadIdx.x == 3);  // stopped: 17
  else y[threadIdx.x] = __all_sync(all, threadIdx.x > 3);                    // stopped: 17
}

// ---- threads that wait forever

__global__ void spin_lock(int *lock, int *shared) {
  while (atomicCAS(lock, 0, 1) != 0) {  // stopped: 18
  }
  shared[0] += 1;  // and nobody gives the lock back
}

__global__ void waits_for_next_block(volatile int *flags) {
  if (blockIdx.x + 1 < gridDim.x)
    while (flags[blockIdx.x + 1] == 0) {  // stopped: 19
    }
  flags[blockIdx.x] = 1;
}

__global__ void no_end(int *x, int n) {
  for (unsigned i = n; i >= 0; --i)  // stopped: 20
    x[i % 64] = x[i % 64] + 1;       // stopped: 20
}

__global__ void meets_for_next_block(volatile int *flags) {
  flags[blockIdx.x] = 1;
  while (!__syncthreads_or(flags[(blockIdx.x + 1) % gridDim.x])) {  // stopped: 21
  }
}

int main(int argc, char **argv) {
  int *x, *y, *z;
  float *f, *g;
  cudaMalloc((void **)&x, 1024), cudaMalloc((void **)&y, 1024), cudaMalloc((void **)&z, 1024);
  cudaMalloc((void **)&f, 1024), cudaMalloc((void **)&g, 1024);
  int host[256];
  float values[256];
  for (int i = 0; i < 256; ++i) host[i] = i * 7 % 64, values[i] = host[i] + 0.5f;
  cudaMemcpy(x, host, 1024, cudaMemcpyHostToDevice);
  cudaMemcpy(f, values, 1024, cudaMemcpyHostToDevice);
  cudaMemset(y, 0, 1024), cudaMemset(z, 0, 1024), cudaMemset(g, 0, 1024);
  switch (argc > 1 ? atoi(argv[1]) : -1) {
    case 0: reverse<<<1, 64>>>(x); break;
    case 1: tree_sum<int><<<1, 128, 128 * sizeof(int)>>>(x, y); break;
    case 2: multiply<<<dim3(2, 2), dim3(TILE, TILE)>>>(f, f, g, 16); break;
    case 3: count_large<<<1, 64>>>(x, y); break;
    case 4: hillis_steele<<<1, 64>>>(x, y); break;
    case 5: last_of_warp<<<1, 64>>>(f, g); break;
    case 6: implicit_warp<<<1, 32>>>(x, y); break;
    case 7: flag_without_fence<<<1, 64>>>(y); break;
    case 8: histogram<<<2, 32>>>(x, y, 256); break;
    case 9: smooth_in_place<<<2, 64>>>(f, 128); break;
    case 10: total<<<4, 64>>>(f, g); break;
    case 11: last_block_sums<<<8, 32>>>(x, y, z); break;
    case 12: two_phases<<<4, 64>>>(y, z, 256); break;
    case 13: early_return<<<1, 64>>>(x, y, 40); break;
    case 14: warps_part<<<1, 64>>>(y); break;
    case 15: mask_of_all<<<1, 32>>>(x, y); break;
    case 16: not_in_the_mask<<<1, 32>>>(y); break;
    case 17: two_operations<<<1, 32>>>(y); break;
    case 18: spin_lock<<<2, 1>>>(z, y); break;
    case 19: waits_for_next_block<<<3, 32>>>(y); break;
    case 21: meets_for_next_block<<<2, 64>>>(y); break;
    case 20: no_end<<<1, 1>>>(y, 5); break;
  }
  cudaDeviceSynchronize();
}
