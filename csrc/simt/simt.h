// One header for kernels: under nvcc it is CUDA, under g++ or clang++ it is an emulator that runs them on the CPU.
//
//   #include "simt/simt.h"
//   __global__ void twice(float* x, int n) { ... }
//   LAUNCH((twice), blocks, threads, shared_bytes, stream)(x, n);      the launch, in both worlds
//   DYNAMIC_SHARED(float, tile);                                        dynamic shared memory, in both worlds
//
// Everything else keeps its CUDA name. Tensor-core and asynchronous-copy instructions, which C++ has no words for, are
// functions in tensor.h. Emulated programs are compiled together with simt/*.cpp. docs/simt.md says what is supported.
#pragma once

#ifdef __CUDACC__

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SIMT_BARE(...) __VA_ARGS__
#define LAUNCH(kernel, grid, block, shared, stream) SIMT_BARE kernel<<<grid, block, shared, stream>>>
#define DYNAMIC_SHARED(T, name)                                      \
  extern __shared__ __align__(16) unsigned char simt_dynamic_shared_[]; \
  T* name = reinterpret_cast<T*>(simt_dynamic_shared_)

#else

#include "runtime.h"
#include "narrow_types.h"
#include "intrinsics.h"
#include "warp.h"
#include "cooperative.h"
#include "host.h"

#endif

#include "tensor.h"
