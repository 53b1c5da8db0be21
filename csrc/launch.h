// What the launchers share: a dtype becomes a type, and a launch that failed becomes an error.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "simt/simt.h"

namespace minillama::kernels {

inline unsigned ceil_div(int64_t a, int64_t b) { return unsigned((a + b - 1) / b); }

// visit(T{}) with the type that `dtype` names.
template <class Visit>
void with_dtype(DType dtype, Visit visit) {
  if (dtype == DType::f32) visit(float{});
  if (dtype == DType::f16) visit(__half{});
  if (dtype == DType::bf16) visit(__nv_bfloat16{});
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

}  // namespace minillama::kernels
