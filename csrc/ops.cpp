// The operators of minillama: one schema each, whatever the backend. Their gradients and fakes: kernels.py.

#include <Python.h>
#include <torch/library.h>

// `minillama` dispatches by device. `minillama_simt` holds the CUDA kernels run by the emulator, on CPU tensors: a name
// of its own, so that nobody gets the slow way by accident and every test can ask for it.
static void define_operators(torch::Library& m) {
  // x (..., T, H, d); cos, sin (T, d/2) fp32, or one such table per row of the batch -> x's shape and dtype
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor");
  // x (..., K) and a weight (out_features, K) in NF4 -> (..., out_features); its gradient (..., out_features) -> (..., K)
  m.def("nf4_matmul(Tensor x, Tensor codes, Tensor absmax, Tensor? absmax_scale, Tensor? absmax_offset, "
        "int out_features, int block_size) -> Tensor");
  m.def("nf4_matmul_backward(Tensor d_out, Tensor codes, Tensor absmax, Tensor? absmax_scale, Tensor? absmax_offset, "
        "int in_features, int block_size) -> Tensor");
  // q (B, H, T, d), k and v (B, K, S, d) -> out (B, H, T, d) and log sum exp of the scores (B, H, T) fp32
  m.def("flash_attention(Tensor q, Tensor k, Tensor v, bool causal) -> (Tensor out, Tensor lse)");
  m.def("flash_attention_backward(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
        "bool causal) -> (Tensor dq, Tensor dk, Tensor dv)");
}

TORCH_LIBRARY(minillama, m) { define_operators(m); }
TORCH_LIBRARY(minillama_simt, m) { define_operators(m); }

// Makes the library importable as minillama._ops; loading it runs the registrations.
PyMODINIT_FUNC PyInit__ops() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ops", "The operators of minillama, compiled.", -1, nullptr};
  return PyModule_Create(&module);
}
