// All kernels over the emulator: the very files that nvcc compiles. No header of PyTorch may be included here.

#include "cuda/flash_backward_tensor_cores.cuh"
#include "cuda/flash_decoding.cuh"
#include "cuda/flash_decoding_append.cuh"
#include "cuda/flash_forward.cuh"
#include "cuda/flash_wide_backward.cuh"
#include "cuda/nf4_backward_tensor_cores.cuh"
#include "cuda/rope_vectors.cuh"
#include "kernel_table.h"

const minillama::kernels::Table* minillama_kernels() {
  using namespace minillama::kernels;
  static const Table table = {rope, nf4_matmul, nf4_matmul_backward, flash_attention, flash_decoding,
                              flash_decoding_append, flash_attention_backward, simt::watch, simt::forget,
                              [](const char* order) { simt::set_schedule(order); }};
  return &table;
}
