// All kernels over the emulator: the very files that nvcc compiles. No header of PyTorch may be included here.

#include "cuda/flash_attention_backward.cuh"
#include "cuda/nf4_matmul.cuh"
#include "cuda/rope.cuh"
