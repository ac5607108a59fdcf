// SPDX-License-Identifier: Apache-2.0
// The Python module of the CUDA kernels. The library registers them with the schemas of fastvq._C,
// which is to be loaded first.
#include <Python.h>

PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr,
                               nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
