// Kernels that are wrong: the emulator must say what, and where. Line numbers are read from the marks at the line ends.

#include "cases.h"

#define FAULT(name, kernel, ...) \
  CASE(name) { int flag = 0; static_cast<void>(flag); LAUNCH((kernel), 1, __VA_ARGS__, 0, nullptr)(&flag); }

__global__ void half_waits(int*) {
  if (threadIdx.x < 16) {
    __syncthreads();  // line: deadlock
  } else {
    __syncwarp();
  }
}
FAULT(deadlock, half_waits, 32)

__global__ void two_barriers(int*) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();  // line: different_barriers
  }
}
FAULT(different_barriers, two_barriers, 32)

__global__ void absent(int* out) {
  *out = __shfl_down_sync(~0u, 1, 16);  // line: absent_lane
}
FAULT(absent_lane, absent, dim3(10, 2))

__global__ void outside(int* out) {
  *out = __shfl_sync(0xfu, 1, 0);  // line: outside_its_mask
}
FAULT(outside_its_mask, outside, 32)

__global__ void mixed(int* out) {
  if (threadIdx.x % 2) *out = __any_sync(~0u, 1);  // line: mixed_operations
  else *out = __all_sync(~0u, 1);
}
FAULT(mixed_operations, mixed, 32)

__global__ void spinning(int* flag) {
  __syncthreads();  // line: endless
  while (*static_cast<volatile int*>(flag) == 0) {}
}
FAULT(endless, spinning, dim3(2, 2))

__global__ void spinning_politely(int* flag) {
  while (atomicAdd(flag, 0) == 0) {}  // line: endless_atomics
}
FAULT(endless_atomics, spinning_politely, 32)

__global__ void trapping(int*) {
  if (threadIdx.x == 9) __trap();  // line: trap
}
FAULT(trap, trapping, 32)

__global__ void unaligned(int*) {
  __shared__ __align__(16) unsigned short rows[64];
  unsigned r[4];
  ldmatrix_x4(r, rows + 1);  // line: unaligned_rows
}
FAULT(unaligned_rows, unaligned, 32)

__global__ void nothing(int*) {}
CASE(too_many_threads) { LAUNCH((nothing), 1, 1025, 0, nullptr)(nullptr); }
CASE(too_deep_block) { LAUNCH((nothing), 1, dim3(1, 1, 65), 0, nullptr)(nullptr); }
CASE(too_wide_grid) { LAUNCH((nothing), dim3(1, 65536), 1, 0, nullptr)(nullptr); }
CASE(empty_grid) { LAUNCH((nothing), 0, 32, 0, nullptr)(nullptr); }
CASE(too_much_shared) { LAUNCH((nothing), 1, 32, 48 * 1024 + 1, nullptr)(nullptr); }
CASE(too_much_opted_in) { cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 * 1024 + 1); }
CASE(opted_in) {
  cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 * 1024);
  LAUNCH((nothing), 1, 32, 99 * 1024, nullptr)(nullptr);
}

CASE(life_goes_on_after_an_error) {
  int flag = 0;
  for (int i = 0; i < 100; ++i) {
    try {
      LAUNCH((half_waits), 1, 1024, 0, nullptr)(&flag);
      REQUIRE(false);
    } catch (const simt::Error&) {
    }
    LAUNCH((nothing), 3, 1024, 0, nullptr)(&flag);
  }
}
