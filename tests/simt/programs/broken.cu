// Wrong uses of what other programs' tests cover: the argument says which. The line at fault bears its mark.
#include <cstdio>
#include <cstdlib>
#include <cooperative_groups.h>
#include <cuda/barrier>

namespace cg = cooperative_groups;

__device__ __forceinline__ unsigned address_of(const void *p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__global__ void no_wait(const float *x, float *y) {
  __shared__ __align__(16) float tile[128];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address_of(tile + 4 * threadIdx.x)),
               "l"(x + 4 * threadIdx.x));
  asm volatile("cp.async.commit_group;");
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];  // asynchronous copy: 0
}

__global__ void one_group_too_few(const float *x, float *y) {
  __shared__ __align__(16) float tile[2][128];
  for (int i = 0; i < 2; ++i) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address_of(&tile[i][threadIdx.x])), "l"(x + threadIdx.x));
    asm volatile("cp.async.commit_group;");
  }
  asm volatile("cp.async.wait_group 1;");
  __syncthreads();
  y[threadIdx.x] = tile[0][threadIdx.x] + tile[1][threadIdx.x];  // asynchronous copy: 1
}

__global__ void not_launched_together(float *y) {
  y[threadIdx.x] = 1;
  cg::this_grid().sync();  // stopped: 2
}

__global__ void one_block_leaves(float *y) {
  if (blockIdx.x == 1) return;
  y[threadIdx.x] = 1;
  cg::this_grid().sync();  // barrier: 3
}

__global__ void together_is_not_ordered(float *y) {
  __shared__ float tile[32];
  if (threadIdx.x % 2) {
    const auto odd = cg::coalesced_threads();
    tile[threadIdx.x] = threadIdx.x;
    if (odd.thread_rank() < 8) y[threadIdx.x] = tile[31 - (threadIdx.x - 1)];  // race: 4
  }
}

__global__ void another_tile(float *y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  cg::tiled_partition<16>(cg::this_thread_block()).sync();
  y[threadIdx.x] = tile[threadIdx.x ^ 16];  // race: 5
}

__global__ void arrives_without_waiting(float *y) {
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  __shared__ float tile[64];
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  tile[threadIdx.x] = 1;
  auto token = bar.arrive();
  y[threadIdx.x] = tile[63 - threadIdx.x] + token;  // race: 6
}

__global__ void over_the_edge(cudaSurfaceObject_t surface) {
  surf2Dwrite(1.0f, surface, 4 * threadIdx.x, 0);  // stopped: 7
}

__global__ void no_shared_memory(float *y) {
  unsigned where;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(where) : "l"(y));  // stopped: 8
  y[0] = where;
}

__global__ void half_a_tile(float *y) {
  const auto tile = cg::tiled_partition<64>(cg::this_thread_block());
  if (threadIdx.x < 40) tile.sync();  // barrier: 9
  else __syncthreads();               // barrier: 9
  y[threadIdx.x] = 1;
}

int main(int argc, char **argv) {
  float *x, *y;
  cudaMalloc(&x, 1024), cudaMalloc(&y, 1024);
  cudaMemset(x, 0, 1024);
  void *arguments[] = {&y};
  cudaArray_t array;
  const auto desc = cudaCreateChannelDesc<float>();
  cudaMallocArray(&array, &desc, 16, 16, cudaArraySurfaceLoadStore);
  switch (argc > 1 ? atoi(argv[1]) : 0) {
    case 0: no_wait<<<1, 32>>>(x, y); break;
    case 1: one_group_too_few<<<1, 128>>>(x, y); break;
    case 2: not_launched_together<<<2, 32>>>(y); break;
    case 3: cudaLaunchCooperativeKernel(one_block_leaves, 3, 32, arguments); break;
    case 4: together_is_not_ordered<<<1, 32>>>(y); break;
    case 5: another_tile<<<1, 64>>>(y); break;
    case 6: arrives_without_waiting<<<1, 64>>>(y); break;
    case 7: {
      cudaResourceDesc resource = {};
      resource.resType = cudaResourceTypeArray, resource.res.array.array = array;
      cudaSurfaceObject_t surface;
      cudaCreateSurfaceObject(&surface, &resource);
      over_the_edge<<<1, 32>>>(surface);
      break;
    }
    case 8: no_shared_memory<<<1, 1>>>(y); break;
    case 9: half_a_tile<<<1, 64>>>(y); break;
  }
  cudaDeviceSynchronize();
}
