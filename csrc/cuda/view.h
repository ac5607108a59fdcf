// SPDX-License-Identifier: Apache-2.0
// Canonical tensors as kernels see them: [batch, length, heads, depth] of any strides, whose rows
// are counted across batch and length.
#pragma once

#include "cpu/rows.h"

#include <cstdint>
#include <limits>
#include <type_traits>

namespace fastvq {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostHeads = 65535;  // of a grid in its second dimension

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

// Offsets are int64, row numbers are not: a division of 64 bits costs more than a row's work.
struct Strides {
  uint32_t length;
  bool flat;  // one stride leads from row to row
  int64_t batch, row, head, depth;

  __device__ int64_t offset(uint32_t n, uint32_t i_head) const {
    const int64_t start = i_head * head;
    if (flat) return start + n * row;
    return start + (n / length) * batch + (n % length) * row;
  }
};

inline Strides strides_of(const Rows& rows) {
  check<std::runtime_error>(rows.count() <= kMostRows && rows.heads <= kMostHeads,
                            "the CUDA kernels of the native backend take at most 2^31 - 1 vectors "
                            "and 65535 heads, got ", rows.count(), " and ", rows.heads);
  const bool flat =
      rows.batch <= 1 || rows.batch_stride == rows.length * rows.length_stride;
  return {static_cast<uint32_t>(rows.length), flat,          rows.batch_stride,
          rows.length_stride,                 rows.head_stride, rows.depth_stride};
}

struct Chosen {
  const int64_t* data;
  Strides strides;

  __device__ int64_t at(uint32_t n, uint32_t i_head) const {
    return data[strides.offset(n, i_head)];
  }
};

inline Chosen chosen_of(const Tensor& t, const Rows& x) {
  check(t.scalar_type() == ScalarType::Long && t.dim() == 3 && t.size(0) == x.batch &&
            t.size(1) == x.length && t.size(2) == x.heads,
        "indices must be int64 [B, M, H] = [", x.batch, ", ", x.length, ", ", x.heads, "], got ",
        torch::headeronly::toString(t.scalar_type()), " ", shape_text(t));
  Rows rows = x;
  rows.batch_stride = t.stride(0);
  rows.length_stride = t.stride(1);
  rows.head_stride = t.stride(2);
  rows.depth_stride = 0;
  return {t.const_data_ptr<int64_t>(), strides_of(rows)};
}

inline bool is_wide(const Rows& x) { return x.dtype == ScalarType::Double; }

// Calls f with null pointers of x's element type and of the type that sums are taken in.
template <class F>
void with_types(ScalarType x, bool wide, const F& f) {
  with_element_type(x, [&](auto* element) {
    if constexpr (std::is_same_v<decltype(element), double*>) {
      f(element, element);
    } else if (wide) {
      f(element, static_cast<double*>(nullptr));
    } else {
      f(element, static_cast<float*>(nullptr));
    }
  });
}

// An element of x in the type that sums are taken in; what is narrower converts exactly.
template <class T, class X>
__device__ T widened(X value) {
  if constexpr (std::is_same_v<X, double>) {
    return static_cast<T>(value);
  } else {
    return static_cast<T>(static_cast<float>(value));
  }
}

template <class X, class T>
__device__ X rounded(T value) {
  if constexpr (std::is_same_v<X, double> || std::is_same_v<X, float>) {
    return static_cast<X>(value);
  } else {
    return static_cast<X>(static_cast<float>(value));
  }
}

__host__ __device__ constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastvq
