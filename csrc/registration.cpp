// SPDX-License-Identifier: Apache-2.0
// The schemas of the native backend, one per op, and the Python module that carries them.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastvq_native, m) {
  m.def("capability() -> str");
  m.def("search_counts() -> Tensor");
  m.def("nearest(Tensor x, Tensor codebook, str metric, str precision) -> (Tensor, Tensor)");
  m.def("quantize(Tensor x, Tensor codebook, Tensor indices) -> (Tensor, Tensor, Tensor)");
  m.def(
      "quantize_backward(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook, "
      "Tensor indices) -> Tensor");
  m.def(
      "directional_backward(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook, "
      "Tensor indices, str gradient, bool to_codes) -> Tensor");
  m.def(
      "residual(Tensor x, Tensor codebooks, Tensor? levels) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "residual_backward(Tensor grad_quantized, Tensor factors, Tensor x, Tensor codebooks, "
      "Tensor indices) -> Tensor");
  m.def(
      "softmax_rows(Tensor x, Tensor codebook, Tensor bias, Tensor? indices, str metric, "
      "float scale) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "softmax_sums(Tensor x, Tensor codebook, Tensor bias, Tensor maximum, Tensor log_sum, "
      "Tensor factors, Tensor? code_factor, Tensor? direction, Tensor? axes, Tensor? values, "
      "bool by_code, str metric, float scale) -> (Tensor, Tensor)");
  m.def(
      "softmax_samples(Tensor x, Tensor codebook, Tensor bias, Tensor keys, str metric, "
      "float scale) -> Tensor");
  m.def(
      "statistics(Tensor x, Tensor indices, int num_codes, Tensor? codebook) -> (Tensor, Tensor)");
}

// `import fastvq._C` loads the library, which registers the above; the module itself is empty.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
