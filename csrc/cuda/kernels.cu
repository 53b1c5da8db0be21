// All kernels in one translation unit. nvcc takes this file for a GPU; ../simt_kernels.cpp is the same for the emulator.

#include "flash_attention_backward.cuh"
#include "nf4_matmul.cuh"
#include "rope.cuh"
