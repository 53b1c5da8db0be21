// CUDA's runtime for whole programs that were written for nvcc: kernels from simt/*.h, the host's functions from here.
//
// minillama/simt/cuda_program.py includes this first and rewrites kernel<<<...>>>(...) to SIMT_KERNEL(kernel)(...)(...). Device
// memory is host memory and every call has happened when it returns. What is not declared here is not supported.
#pragma once

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>

#include "../runtime.h"
#include "../narrow_types.h"
#include "../intrinsics.h"
#include "../warp.h"
#include "../cooperative.h"
#include "../tensor.h"
#include "../wmma.h"

#include "errors.h"
#include "launch.h"
#include "device.h"
#include "memory.h"
#include "textures.h"
#include "more_intrinsics.h"
#include "more_math.h"
#include "packed.h"
#include "halves.h"
#include "more_device.h"
#include "more_runtime.h"
#include "ptx.h"

// A local variable that is declared without a value: T name SIMT_LOCAL; SIMT_BEGINS(name)
#ifdef SIMT_PROFILE
extern "C" void simt_local_begins(const volatile void* variable, size_t bytes, const char* name);
extern "C" void simt_local_ends(const volatile void* variable);
#define SIMT_LOCAL __attribute__((cleanup(simt_local_ends)))
#define SIMT_BEGINS(name)                                                                 \
  if (std::is_trivially_default_constructible_v<std::remove_all_extents_t<decltype(name)>>) \
    simt_local_begins(&(name), sizeof(name), #name);
extern "C" void simt_distinct(const char* names, const void* const* pointers, const bool* are_read, int count);
namespace simt::program {
template <class... T>
SIMT_INLINE void distinct(const char* names, T... pointers) {  // the parameters of a kernel that are __restrict__
  if (threadIdx.x + threadIdx.y + threadIdx.z + blockIdx.x + blockIdx.y + blockIdx.z) return;
  const void* const all[] = {(const void*)pointers...};
  const bool are_read[] = {std::is_const_v<std::remove_pointer_t<T>>...};
  simt_distinct(names, all, are_read, sizeof...(T));
}
}  // namespace simt::program
#define SIMT_DISTINCT(...) ::simt::program::distinct(#__VA_ARGS__, __VA_ARGS__);
extern "C" void* simt_malloc(size_t bytes) noexcept;  // which tells the profiler, see profile/heap.cpp
extern "C" void simt_free(void* memory) noexcept;
namespace std {
using ::simt_free;
using ::simt_malloc;
}  // namespace std
#define malloc simt_malloc
#define free simt_free
#else
#define SIMT_LOCAL
#define SIMT_BEGINS(name)
#define SIMT_DISTINCT(...)
#endif

// What programs ask to learn who compiles them; last, because the headers above must not take this for nvcc.
#define __CUDACC__ 1
#define __CUDA_ARCH__ 890
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 0
#define CUDART_VERSION 12000
#define CUDA_VERSION 12000
#define __DRIVER_TYPES_H__
#define __CUDA_RUNTIME_H__
