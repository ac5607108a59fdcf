// SPDX-License-Identifier: Apache-2.0
// Counts and sums per code of one head, in an order that depends on the data alone.
#pragma once

#include "dense.h"
#include "indices.h"

#include <cstdint>

namespace fastvq {

// Without codes the rows are summed, with codes their differences from their own code.
template <class T>
struct HeadStatistics {
  const Rows& x;
  int64_t head;
  const Indices& indices;
  const DenseCodes<T>* codes;
  int64_t num_codes;
  // Every element is written: counts [K] and sums [K, D].
  T* counts;
  T* sums;
};

// Rows of contiguous elements are sorted by code and summed code by code.
template <class X, class T>
void sum_sorted(const HeadStatistics<T>& head);

// Rows of any other strides (channels first) are walked in order, some columns at a time.
template <class T>
void sum_columns(const HeadStatistics<T>& head);

}  // namespace fastvq
