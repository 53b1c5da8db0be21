// The operators of minillama: one schema each, whatever the backend. Their gradients and fakes: kernels.py.

#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(minillama, m) {
  // x (..., T, H, d); cos, sin (T, d/2) fp32, or one such table per row of the batch -> x's shape and dtype
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor");
}

// Makes the library importable as minillama._ops; loading it runs the registrations.
PyMODINIT_FUNC PyInit__ops() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ops", "The operators of minillama, compiled.", -1, nullptr};
  return PyModule_Create(&module);
}
