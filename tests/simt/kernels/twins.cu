// Kernels that are wrong, each beside its sound twin (sound = 1), for the profiler to tell apart. A mark at the end of a
// line says what must be reported there: `kind` and, for two accesses, both lines. x and y hold 256 floats.

#define RUN(kernel, threads, shared) LAUNCH((kernel), 1, threads, shared, nullptr)(x, y, sound)

__global__ void no_barrier(const float* x, float* y, int sound) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];  // race: read_before_written
  if (sound) __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // race: read_before_written
}
extern "C" void read_before_written(const float* x, float* y, int sound) { RUN(no_barrier, 64, 0); }

__global__ void no_second_barrier(const float* x, float* y, int sound) {
  __shared__ float tile[64];
  for (int i = 0; i < 4; ++i) {
    tile[threadIdx.x] = x[64 * i + threadIdx.x];  // race: overwritten_before_read
    __syncthreads();
    y[64 * i + threadIdx.x] = tile[63 - threadIdx.x];  // race: overwritten_before_read
    if (sound) __syncthreads();
  }
}
extern "C" void overwritten_before_read(const float* x, float* y, int sound) { RUN(no_second_barrier, 64, 0); }

__global__ void all_store(const float* x, float* y, int sound) {
  __shared__ float last;
  if (!sound || threadIdx.x == 63) last = x[threadIdx.x];  // race: two_values_stored
  __syncthreads();
  y[threadIdx.x] = last;
}
extern "C" void two_values_stored(const float* x, float* y, int sound) { RUN(all_store, 64, 0); }

__global__ void two_lines(const float* x, float* y, int sound) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 1;  // race: two_lines_store
  if (sound) __syncthreads();
  if (threadIdx.x == 40) sum = 2;  // race: two_lines_store
  __syncthreads();
  y[threadIdx.x] = sum + x[threadIdx.x];
}
extern "C" void two_lines_store(const float* x, float* y, int sound) { RUN(two_lines, 64, 0); }

__global__ void inside_a_warp(const float* x, float* y, int sound) {
  DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = x[threadIdx.x];  // race: no_syncwarp
  if (sound) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x ^ 1];  // race: no_syncwarp
}
extern "C" void no_syncwarp(const float* x, float* y, int sound) { RUN(inside_a_warp, 64, 256); }

__global__ void in_a_tile(const float* x, float* y, int sound) {  // eight lanes that meet know only of each other
  __shared__ float tile[32];
  const unsigned eight = 0xffu << threadIdx.x / 8 * 8;
  tile[threadIdx.x] = x[threadIdx.x];  // race: wrong_mask
  __syncwarp(sound ? ~0u : eight);
  y[threadIdx.x] = tile[31 - threadIdx.x];  // race: wrong_mask
}
extern "C" void wrong_mask(const float* x, float* y, int sound) { RUN(in_a_tile, 32, 0); }

__global__ void histogram(const float* x, float* y, int sound) {
  __shared__ int bins[4];
  if (threadIdx.x < 4) bins[threadIdx.x] = 0;
  __syncthreads();
  const int bin = threadIdx.x % 4 + (x[threadIdx.x] > 1e9f);
  if (sound) atomicAdd(&bins[bin], 1);
  else bins[bin] += 1;  // race: no_atomic
  __syncthreads();
  if (threadIdx.x < 4) y[threadIdx.x] = float(bins[threadIdx.x]);
}
extern "C" void no_atomic(const float* x, float* y, int sound) { RUN(histogram, 64, 0); }

__global__ void sum_by_halves(const float* x, float* y, int sound) {
  __shared__ float part[128];
  part[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int half = 64; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];  // race: barrier_left_out_of_a_sum
    if (sound || half != 16) __syncthreads();
  }
  if (threadIdx.x == 0) y[0] = part[0];
}
extern "C" void barrier_left_out_of_a_sum(const float* x, float* y, int sound) { RUN(sum_by_halves, 128, 0); }

__global__ void maximum_then_sum(const float* x, float* y, int sound) {  // a scratch array used twice in a row
  __shared__ float scratch[4];
  const int warp = threadIdx.x / 32;
  const float highest = __reduce_max_sync(~0u, x[threadIdx.x]);
  if (threadIdx.x % 32 == 0) scratch[warp] = highest;
  __syncthreads();
  const float m = fmaxf(fmaxf(scratch[0], scratch[1]), fmaxf(scratch[2], scratch[3]));  // race: scratch_used_twice
  if (sound) __syncthreads();
  const float sum = __reduce_add_sync(~0u, x[threadIdx.x] - m);
  if (threadIdx.x % 32 == 0) scratch[warp] = sum;  // race: scratch_used_twice
  __syncthreads();
  y[threadIdx.x] = scratch[0] + scratch[1] + scratch[2] + scratch[3];
}
extern "C" void scratch_used_twice(const float* x, float* y, int sound) { RUN(maximum_then_sum, 128, 0); }

__global__ void copy_without_wait(const float* x, float* y, int sound) {
  __shared__ __align__(16) float tile[128];
  cp_async<16>(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // asynchronous copy: no_wait
  cp_async_commit();
  if (sound) cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];  // asynchronous copy: no_wait
}
extern "C" void no_wait(const float* x, float* y, int sound) { RUN(copy_without_wait, 32, 0); }

__global__ void copy_without_barrier(const float* x, float* y, int sound) {
  __shared__ __align__(16) float tile[128];
  cp_async<16>(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // race: waited_but_no_barrier
  cp_async_commit();
  cp_async_wait<0>();
  if (sound) __syncthreads();
  y[threadIdx.x] = tile[127 - threadIdx.x];  // race: waited_but_no_barrier
}
extern "C" void waited_but_no_barrier(const float* x, float* y, int sound) { RUN(copy_without_barrier, 32, 0); }

__global__ void without_halo(const float* x, float* y, int sound) {
  __shared__ float tile[66];
  tile[threadIdx.x + 1] = x[threadIdx.x + 1];
  if (threadIdx.x == 0) tile[0] = x[0];
  if (sound && threadIdx.x == 63) tile[65] = x[65];
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x] + tile[threadIdx.x + 2];  // uninitialised: halo_not_loaded
}
extern "C" void halo_not_loaded(const float* x, float* y, int sound) { RUN(without_halo, 64, 0); }

__global__ void one_too_far(const float* x, float* y, int sound) {
  const int i = threadIdx.x + 192;
  y[i] = i < 255 || !sound ? x[i + 1] : 0;  // out of bounds: reads_past_the_end
}
extern "C" void reads_past_the_end(const float* x, float* y, int sound) { RUN(one_too_far, 64, 0); }

__global__ void no_tail_guard(const float* x, float* y, int sound) {
  const int i = threadIdx.x + 224;
  if (!sound || i < 256) y[i] = x[threadIdx.x];  // out of bounds: writes_past_the_end
}
extern "C" void writes_past_the_end(const float* x, float* y, int sound) { RUN(no_tail_guard, 64, 0); }

__global__ void minus_one(const float* x, float* y, int sound) {
  const int i = threadIdx.x;
  y[i] = sound && i == 0 ? 0 : x[i - 1];  // out of bounds: reads_before_the_start
}
extern "C" void reads_before_the_start(const float* x, float* y, int sound) { RUN(minus_one, 32, 0); }

__global__ void too_little_shared(const float* x, float* y, int sound) {
  DYNAMIC_SHARED(float, tile);
  const int i = threadIdx.x + (sound ? 0 : 1);
  tile[i] = x[threadIdx.x];  // out of bounds: dynamic_shared_overflows
  __syncthreads();
  y[threadIdx.x] = tile[i];
}
extern "C" void dynamic_shared_overflows(const float* x, float* y, int sound) { RUN(too_little_shared, 32, 128); }

__device__ float element(const float* x, int i) { return x[i]; }  // out of bounds: static_shared_overflows
__global__ void beyond_static(const float* x, float* y, int sound) {  // by a pointer, of which no compiler knows the array
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = element(tile, threadIdx.x + (sound ? 0 : 40000));
}
extern "C" void static_shared_overflows(const float* x, float* y, int sound) { RUN(beyond_static, 64, 0); }

__global__ void vector_of_odd_row(const float* x, float* y, int sound) {
  const float4 four = *reinterpret_cast<const float4*>(x + (sound ? 4 : 5) * threadIdx.x);  // misaligned: global_vector
  y[threadIdx.x] = four.x + four.w;
}
extern "C" void global_vector(const float* x, float* y, int sound) { RUN(vector_of_odd_row, 32, 0); }

__global__ void vector_of_padded_row(const float* x, float* y, int sound) {
  __shared__ __align__(16) float tile[33 * 32];
  const int row = (sound ? 32 : 33) * threadIdx.x;
  tile[row] = x[threadIdx.x];
  tile[row + 1] = x[threadIdx.x + 1];
  const float2 two = *reinterpret_cast<const float2*>(&tile[row]);  // misaligned: shared_vector
  y[threadIdx.x] = two.x + two.y;
}
extern "C" void shared_vector(const float* x, float* y, int sound) { RUN(vector_of_padded_row, 32, 0); }

__global__ void half_a_warp_waits(const float* x, float* y, int sound) {
  if (sound || threadIdx.x % 32 < 16) {
    __syncthreads();  // barrier: barrier_in_a_branch
  } else {
    __syncwarp();  // barrier: barrier_in_a_branch
  }
}
extern "C" void barrier_in_a_branch(const float* x, float* y, int sound) { RUN(half_a_warp_waits, 64, 0); }

__global__ void two_barriers(const float* x, float* y, int sound) {
  if (sound || threadIdx.x < 32) {
    __syncthreads();  // barrier: different_barriers
  } else {
    __syncthreads();  // barrier: different_barriers
  }
}
extern "C" void different_barriers(const float* x, float* y, int sound) { RUN(two_barriers, 64, 0); }

__global__ void a_lane_is_missing(const float* x, float* y, int sound) {
  y[threadIdx.x] = __shfl_down_sync(~0u, x[threadIdx.x], sound ? 1 : 16, 8 + 24 * !sound);  // stopped: absent_lane
}
extern "C" void absent_lane(const float* x, float* y, int sound) { RUN(a_lane_is_missing, 24, 0); }

__global__ void one_lock(const float* x, float* y, int sound) {
  __shared__ int lock;
  __shared__ float count;
  if (threadIdx.x == 0) lock = 0, count = 0;
  __syncthreads();
  for (bool mine = false; !mine;)
    if (atomicCAS(&lock, 0, 1) == 0) {
      if (sound) __threadfence_block();
      count += 1;  // race: lock_without_fences
      if (sound) __threadfence_block();
      atomicExch(&lock, 0);
      mine = true;
    }
  __syncthreads();
  y[threadIdx.x] = count + x[0];
}
extern "C" void lock_without_fences(const float* x, float* y, int sound) { RUN(one_lock, 96, 0); }

__global__ void two_locks(const float* x, float* y, int sound) {
  __shared__ int locks[2];
  __shared__ float count;
  if (threadIdx.x == 0) locks[0] = locks[1] = 0, count = 0;
  __syncthreads();
  int* const lock = &locks[sound ? 0 : threadIdx.x % 2];
  for (bool mine = false; !mine;)
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence_block();
      count += 1;  // race: another_lock
      __threadfence_block();
      atomicExch(lock, 0);
      mine = true;
    }
  __syncthreads();
  y[threadIdx.x] = count + x[0];
}
extern "C" void another_lock(const float* x, float* y, int sound) { RUN(two_locks, 96, 0); }

__global__ void last_warp_adds(const float* x, float* y, int sound) {
  __shared__ float part[96];
  __shared__ int done;
  if (threadIdx.x == 0) done = 0;
  __syncthreads();
  part[threadIdx.x] = x[threadIdx.x];  // race: not_handed_on
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x % 32 == 0) {
    if (sound) __threadfence_block();
    ticket = atomicAdd(&done, 1);
    __threadfence_block();
  }
  ticket = __shfl_sync(~0u, ticket, 0);
  if (ticket < 2) return;
  const int i = threadIdx.x % 32;
  y[i] = part[i] + part[i + 32] + part[i + 64];  // race: not_handed_on
}
extern "C" void not_handed_on(const float* x, float* y, int sound) { RUN(last_warp_adds, 96, 0); }
