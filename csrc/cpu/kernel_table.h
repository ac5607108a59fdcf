// SPDX-License-Identifier: Apache-2.0
// Collects the kernels of the instruction set whose namespace is in scope.
#include "score_table.h"

template <class T>
static constexpr RowKernels<T> row_table() {
  return {read<T>, measure<T>, weighted_sum<T>, hash<T>, compare<T>, scatter<T>};
}

template <class X, class T>
static constexpr GatherKernels<X, T> gather_table() {
  return {gather_forward<X, T>, gather_backward<X, T>,
          {sum_rows<X, T, T>, sum_rows<X, T, double>}};
}

static constexpr Kernels make_table(const char* name) {
  return {.name = name,
          .rows_float = row_table<float>(),
          .rows_double = row_table<double>(),
          .coarse = nullptr,
          .coarse_depth = 0,
          .fine = FASTVQ_SCORE_TABLE(float32),
          .gather_float = gather_table<float, float>(),
          .gather_half = gather_table<c10::Half, float>(),
          .gather_bfloat16 = gather_table<c10::BFloat16, float>(),
          .gather_float_double = gather_table<float, double>(),
          .gather_half_double = gather_table<c10::Half, double>(),
          .gather_bfloat16_double = gather_table<c10::BFloat16, double>(),
          .gather_double = gather_table<double, double>(),
          .softmax_float = softmax_table<float>(),
          .softmax_double = softmax_table<double>()};
}
