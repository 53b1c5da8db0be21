// The driver's interface is not there; what is: the words that programs of the runtime borrow from its header.
#pragma once
#include "cuda_runtime.h"

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_UNKNOWN = 999 };
using CUdevice = int;
inline bool operator!=(cudaError_t error, CUresult result) { return int(error) != int(result); }
inline bool operator==(cudaError_t error, CUresult result) { return int(error) == int(result); }
inline CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
inline CUresult cuMemGetInfo(size_t* free, size_t* total) { return CUresult(cudaMemGetInfo(free, total)); }
