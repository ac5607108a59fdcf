// SPDX-License-Identifier: Apache-2.0
// A canonical tensor [batch, length, heads, depth] of any strides, seen as batch*length rows a head.
#pragma once

#include "check.h"

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <string>

namespace fastvq {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Rows {
  const void* data;
  ScalarType dtype;
  int64_t batch, length, heads, depth;
  int64_t batch_stride, length_stride, head_stride, depth_stride;  // in elements

  int64_t element_size() const {
    return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  }
  int64_t count() const { return batch * length; }
  int64_t offset(int64_t row, int64_t head) const {
    return (row / length) * batch_stride + (row % length) * length_stride + head * head_stride;
  }
};

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline void check_floating(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16 || dtype == ScalarType::Double,
                  name, " must be float32, float16, bfloat16 or float64, got ",
                  torch::headeronly::toString(dtype));
}

inline Rows rows_of(const Tensor& t, const char* name) {
  check(t.dim() == 4, name, " must be [B, M, H, D], got ", shape_text(t));
  check_floating(t, name);
  return {t.const_data_ptr(), t.scalar_type(), t.size(0),   t.size(1),   t.size(2),
          t.size(3),          t.stride(0),     t.stride(1), t.stride(2), t.stride(3)};
}

// A codebook [H, K, D] is K rows a head.
inline Rows rows_of_codebook(const Tensor& t, const Rows& x) {
  check(t.dim() == 3 && t.size(0) == x.heads && t.size(1) > 0 && t.size(2) == x.depth,
                  "codebook must be [H, K, D] with H = ", x.heads, ", K > 0 and D = ", x.depth,
                  ", got ", shape_text(t));
  check_floating(t, "codebook");
  return {t.const_data_ptr(), t.scalar_type(), 1,           t.size(1),   t.size(0),
          t.size(2),          0,               t.stride(1), t.stride(0), t.stride(2)};
}

// Calls f with a null pointer of the element type, the way to name a type in a generic lambda.
template <class F>
void with_element_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Half:
      return f(static_cast<c10::Half*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<c10::BFloat16*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

}  // namespace fastvq
