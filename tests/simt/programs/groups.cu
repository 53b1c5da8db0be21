// Cooperative groups, kernels that launch, barriers and pipelines in memory, textures, wmma: each checks itself.
#include <cstdio>
#include <cstdlib>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <mma.h>

namespace cg = cooperative_groups;
static int wrong = 0;
static void expect(bool good, const char *what) {
  if (!good) printf("WRONG: %s\n", what);
  wrong += !good;
}

__device__ int sum_in(cg::thread_group g, int *x, int value) {  // leaves the sum in the group's first thread
  const int rank = g.thread_rank();
  for (int half = g.size() / 2; half > 0; half /= 2) {
    x[rank] = value;
    g.sync();
    if (rank < half) value += x[rank + half];
    g.sync();
  }
  return value;
}

__global__ void partitions(int *out) {
  __shared__ int room[96];
  const int t = threadIdx.x, lane = t % 32;
  const auto block = cg::this_thread_block();
  const auto tile = cg::tiled_partition<32>(block);
  const cg::thread_group eight = cg::tiled_partition(block, 8);
  const int eights = sum_in(eight, room + t / 8 * 8, 1);
  int bad = t % 8 == 0 && eights != 8;
  if (lane % 3 == 0) {  // a branch: 11 lanes are together
    const auto here = cg::coalesced_threads();
    bad |= (here.size() != 11 || here.thread_rank() != lane / 3 || here.shfl(lane, 2) != 6) << 1;
    bad |= (cg::reduce(here, lane, cg::plus<int>()) != 165) << 2;
  }
  const auto same = cg::labeled_partition(tile, lane % 5);
  bad |= (cg::reduce(same, 1, cg::plus<int>()) != (lane % 5 < 2 ? 7 : 6)) << 3;
  const auto half = cg::binary_partition(tile, lane < 20);
  bad |= (half.size() != (lane < 20 ? 20 : 12) || half.any(lane == 19) != (lane < 20)) << 4;
  bad |= (cg::inclusive_scan(tile, 2) != 2 * (lane + 1) || cg::exclusive_scan(tile, 2) != 2 * lane) << 5;
  const auto wide = cg::tiled_partition<64>(block);
  if (t < 64) bad |= (cg::reduce(wide, t, cg::plus<int>()) != 2016 || wide.shfl(t, 40) != 40) << 6;
  if (t < 64 && t > 2) wide.sync();  // a tile of two warps, met on two paths
  else if (t < 64) wide.sync();
  bad |= (__popc(__activemask()) != 32) << 7;
  out[t] = bad;
}

__global__ void across(int *x) {  // each block sums what all blocks wrote
  __shared__ int mine;
  if (threadIdx.x == 0) mine = blockIdx.x, x[blockIdx.x] = blockIdx.x + 1;
  cg::this_grid().sync();
  int sum = 0;
  for (int i = 0; i < gridDim.x; ++i) sum += x[i];
  if (threadIdx.x == 0) x[blockIdx.x + gridDim.x] = mine == blockIdx.x ? sum : -1;
}

__global__ void child(int *x, int depth) {
  if (threadIdx.x > 0) return;
  atomicAdd(x, 1);
  if (depth) child<<<2, 32>>>(x, depth - 1);
}

__global__ void handed_on(const float *x, float *y) {  // a barrier in memory between copies and their readers
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  __shared__ __align__(16) float tile[64];
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  cuda::memcpy_async(tile + threadIdx.x, x + threadIdx.x, sizeof(float), bar);
  bar.wait(bar.arrive());
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void staged(const float *x, float *y) {  // two stages: threads of the first warp copy, of the second add
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
  __shared__ float tile[2][32];
  const bool copies = threadIdx.x < 32;
  auto block = cg::this_thread_block();
  auto pipe = cuda::make_pipeline(block, &state, copies ? cuda::pipeline_role::producer : cuda::pipeline_role::consumer);
  float sum = 0;
  for (int i = 0; i < 4; ++i)
    if (copies) {
      pipe.producer_acquire();
      cuda::memcpy_async(&tile[i % 2][threadIdx.x], x + 32 * i + threadIdx.x, sizeof(float), pipe);
      pipe.producer_commit();
    } else {
      pipe.consumer_wait();
      sum += tile[i % 2][63 - threadIdx.x];
      pipe.consumer_release();
    }
  if (!copies) y[threadIdx.x - 32] = sum;
}

texture<float, 2> bound;
__global__ void look(cudaTextureObject_t points, cudaTextureObject_t between, cudaSurfaceObject_t surface, float *y) {
  y[0] = tex2D<float>(points, 1.5f, 2.5f), y[1] = tex2D<float>(between, 2.0f, 2.5f);
  y[2] = tex2D<float>(points, -5, 0), y[3] = tex2D(bound, 3.5f, 0.5f);
  surf2Dwrite(100.0f, surface, 0, 1);
  y[4] = surf2Dread<float>(surface, 0, 1);
}

__global__ void tensor(const __half *a, const __half *b, float *c) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, __half, row_major> fa;
  fragment<matrix_b, 16, 16, 16, __half, col_major> fb;
  fragment<accumulator, 16, 16, 16, float> fc;
  fill_fragment(fc, 1.0f);
  load_matrix_sync(fa, a, 16), load_matrix_sync(fb, b, 16);
  mma_sync(fc, fa, fb, fc);
  store_matrix_sync(c, fc, 16, mem_row_major);
}

static void textures(float *y) {
  float data[16];
  for (int i = 0; i < 16; ++i) data[i] = i;
  const auto desc = cudaCreateChannelDesc<float>();
  cudaArray_t array;
  cudaMallocArray(&array, &desc, 4, 4, cudaArraySurfaceLoadStore);
  cudaMemcpy2DToArray(array, 0, 0, data, 16, 16, 4, cudaMemcpyHostToDevice);
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray, resource.res.array.array = array;
  cudaTextureDesc how = {};
  how.addressMode[0] = how.addressMode[1] = cudaAddressModeClamp;
  cudaTextureObject_t points, between;
  cudaSurfaceObject_t surface;
  cudaCreateTextureObject(&points, &resource, &how, nullptr);
  how.filterMode = cudaFilterModeLinear;
  cudaCreateTextureObject(&between, &resource, &how, nullptr);
  cudaCreateSurfaceObject(&surface, &resource);
  cudaBindTextureToArray(bound, array);
  look<<<1, 1>>>(points, between, surface, y);
  cudaDeviceSynchronize();
  expect(y[0] == 9 && y[1] == 9.5f && y[2] == 0 && y[3] == 3 && y[4] == 100, "textures");
}

int main() {
  int *x, n = 10;
  float *y;
  cudaMallocManaged(&x, 512), cudaMallocManaged(&y, 4096);
  partitions<<<1, 96>>>(x);
  cudaDeviceSynchronize();
  bool good = true;
  for (int i = 0; i < 96; ++i) good &= x[i] == 0;
  expect(good, "partitions");
  void *arguments[] = {&x};
  expect(cudaLaunchCooperativeKernel((void *)across, dim3(n), dim3(64), arguments) == cudaSuccess, "together");
  cudaDeviceSynchronize();
  for (int i = 0; i < n; ++i) expect(x[n + i] == 55, "grid.sync");
  expect(cudaLaunchCooperativeKernel((void *)across, 1000, 1024, arguments) == cudaErrorCooperativeLaunchTooLarge,
         "too many blocks");
  expect(cudaGetLastError() == cudaErrorCooperativeLaunchTooLarge && cudaGetLastError() == cudaSuccess, "its error");
  *x = 0;
  child<<<1, 32>>>(x, 3);
  cudaDeviceSynchronize();
  expect(*x == 15, "children");
  for (int i = 0; i < 128; ++i) y[i] = i;
  handed_on<<<1, 64>>>(y, y + 256);
  cudaDeviceSynchronize();
  expect(y[256] == 63 && y[319] == 0, "a barrier in memory");
  staged<<<1, 64>>>(y, y + 256);
  cudaDeviceSynchronize();
  expect(y[256] == 31 + 63 + 95 + 127 && y[287] == 0 + 32 + 64 + 96, "a pipeline of a block");
  textures(y);
  __half *a;
  cudaMallocManaged(&a, 1024);
  for (int i = 0; i < 512; ++i) a[i] = __half(float(i % 7 - 3));
  tensor<<<1, 32>>>(a, a + 256, y);
  cudaDeviceSynchronize();
  float sum = 1;
  for (int k = 0; k < 16; ++k) sum += float(a[3 * 16 + k]) * float(a[256 + 5 * 16 + k]);
  expect(y[3 * 16 + 5] == sum, "wmma");
  expect(cudaDeviceSynchronize() == cudaSuccess, "no error is left");
  printf("%d wrong\n", wrong);
  return wrong;
}
