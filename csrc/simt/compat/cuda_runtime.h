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

// What programs ask to learn who compiles them; last, because the headers above must not take this for nvcc.
#define __CUDACC__ 1
#define __CUDA_ARCH__ 890
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 0
#define CUDART_VERSION 12000
#define CUDA_VERSION 12000
#define __DRIVER_TYPES_H__
#define __CUDA_RUNTIME_H__
