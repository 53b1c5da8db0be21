// The CUDA kernels as operators on CUDA tensors. No header of CUDA is needed here: device and stream come through
// PyTorch's own device-independent interfaces, so that this file compiles with a PyTorch that was built without CUDA.

#include <Python.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "kernel_table.h"

namespace minillama {

static const kernels::Table* in_use = minillama_kernels();
constexpr at::DeviceType kDevice = at::kCUDA;

// The stream that PyTorch's own kernels use on this device at this moment.
static void* stream_of(const at::Tensor& x) {
  return c10::impl::VirtualGuardImpl(kDevice).getStream(x.device()).native_handle();
}

}  // namespace minillama

#include "bind_kernels.h"

TORCH_LIBRARY_IMPL(minillama, CUDA, m) { minillama::implement(m); }

// Makes the library importable as minillama._cuda; loading it runs the registrations. minillama._ops has the schemas.
PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", "The operators of minillama on GPUs.", -1, nullptr};
  return PyModule_Create(&module);
}
