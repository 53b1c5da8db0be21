// The CUDA kernels, run by the emulator, as operators on CPU tensors.

#include <ATen/core/Tensor.h>

#include "kernel_table.h"

namespace minillama {

static const kernels::Table* in_use = minillama_kernels();
constexpr at::DeviceType kDevice = at::kCPU;

static void* stream_of(const at::Tensor&) { return nullptr; }

}  // namespace minillama

#include "bind_kernels.h"

TORCH_LIBRARY_FRAGMENT(minillama_simt, m) {
  m.def("set_schedule(str text) -> ()", [](const std::string& text) { minillama::in_use->set_schedule(text.c_str()); });
  // the address of a kernels::Table of another library, or 0: the kernels of this one
  m.def("use_kernels(int table) -> ()", [](int64_t table) {
    minillama::in_use = table ? reinterpret_cast<const minillama::kernels::Table*>(table) : minillama_kernels();
  });
}

TORCH_LIBRARY_IMPL(minillama_simt, CPU, m) { minillama::implement(m); }
