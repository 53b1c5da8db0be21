// The operators of minillama: one schema each, whatever the backend. Their gradients and fakes: kernels.py.

#include <Python.h>
#include <torch/library.h>

// `minillama` dispatches by device. `minillama_simt` holds the CUDA kernels run by the emulator, on CPU tensors: a name
// of its own, so that nobody gets the slow way by accident and every test can ask for it.
static void define_operators(torch::Library& m) {
  // q (B, T, H, d), k (B, T, K, d); rotations: (cos, sin) fp32, (rows, r/2, 2), r <= d, of which token t uses row
  // positions[t] or positions[b, t], or offset + t; or a row for each token, (B, T, r/2, 2). inverse turns back.
  m.def("rope(Tensor q, Tensor k, Tensor rotations, Tensor? positions, SymInt offset, bool interleaved, bool inverse) "
        "-> (Tensor q_turned, Tensor k_turned)");
  // the same in place, without a gradient
  m.def("rope_(Tensor(a!) q, Tensor(b!) k, Tensor rotations, Tensor? positions, SymInt offset, bool interleaved, "
        "bool inverse) -> ()");
  // the same into given tensors of any strides, such as rows of a cache for k; without a gradient
  m.def("rope_into(Tensor q, Tensor k, Tensor(a!) q_out, Tensor(b!) k_out, Tensor rotations, Tensor? positions, "
        "SymInt offset, bool interleaved, bool inverse) -> ()");
  // x (..., K) and a weight (out_features, K) in NF4 -> (..., out_features); its gradient (..., out_features) -> (..., K)
  m.def("nf4_matmul(Tensor x, Tensor codes, Tensor absmax, Tensor? absmax_scale, Tensor? absmax_offset, "
        "int out_features, int block_size) -> Tensor");
  m.def("nf4_matmul_backward(Tensor d_out, Tensor codes, Tensor absmax, Tensor? absmax_scale, Tensor? absmax_offset, "
        "int in_features, int block_size) -> Tensor");
  // q (B, H, T, d), k and v (B, K, S, d) -> out (B, H, T, d); in fp32, log sum exp of the scores (B, H, T), and for the
  // gradients rows (B, H, T, 2): each row's highest score before the scale, and its sum of exponentials below that.
  // mask: which keys may be seen, bool (B, T, S) or 1s in it
  m.def("flash_attention(Tensor q, Tensor k, Tensor v, bool causal, Tensor? mask=None) "
        "-> (Tensor out, Tensor lse, Tensor rows)");
  m.def("flash_attention_backward(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor rows, "
        "bool causal, Tensor? mask=None) -> (Tensor dq, Tensor dk, Tensor dv)");
  // the same out for up to 8 queries, without a gradient; CUDA kernels only
  m.def("flash_decoding(Tensor q, Tensor k, Tensor v, bool causal, Tensor? mask=None) -> Tensor");
  // a token of each row behind a cache (B, K, room, d), in one launch: RoPE of q (B, 1, H, d) and k (B, 1, K, d), k and v
  // into row lengths[b] (or length), attention from row begins[b] on; rotations (rows, r/2, 2), of which row lengths[b] -
  // begins[b] is taken, or (1 or B, 1, r/2, 2). arrivals: int32, B H of them, 0; CUDA kernels only
  m.def("flash_decoding_append(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor(c!) arrivals, "
        "Tensor rotations, Tensor? lengths, SymInt length, Tensor? begins, bool interleaved) -> Tensor");
}

TORCH_LIBRARY(minillama, m) { define_operators(m); }
TORCH_LIBRARY(minillama_simt, m) { define_operators(m); }

// Makes the library importable as minillama._ops; loading it runs the registrations.
PyMODINIT_FUNC PyInit__ops() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ops", "The operators of minillama, compiled.", -1, nullptr};
  return PyModule_Create(&module);
}
