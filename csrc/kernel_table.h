// The kernels of one library as pointers: the bindings call through such a table, so that another library with the same
// kernels, compiled with the emulator's profiler, can take the place of their own while somebody profiles.
#pragma once

#include <cstddef>

#include "cuda/kernels.h"

namespace minillama::kernels {

struct Table {
  decltype(&kernels::rope) rope;
  decltype(&kernels::nf4_matmul) nf4_matmul;
  decltype(&kernels::nf4_matmul_backward) nf4_matmul_backward;
  decltype(&kernels::flash_attention) flash_attention;
  decltype(&kernels::flash_decoding) flash_decoding;
  decltype(&kernels::flash_decoding_append) flash_decoding_append;
  decltype(&kernels::flash_attention_backward) flash_attention_backward;
  void (*watch)(const void* address, std::size_t bytes, const char* name);  // global memory that a launch may touch
  void (*forget)(const void* address);
  void (*set_schedule)(const char* order);
};

}  // namespace minillama::kernels

extern "C" __attribute__((visibility("default"))) const minillama::kernels::Table* minillama_kernels();
