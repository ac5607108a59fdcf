// SPDX-License-Identifier: Apache-2.0
// Counts and sums per code of one head, in an order that depends on the data alone.
#pragma once

#include "dense.h"
#include "indices.h"
#include "sorted_rows.h"

#include <cstdint>
#include <vector>

namespace fastvq {

template <class T>
class HeadStatistics {
 public:
  // Without codes the rows are summed, with codes their differences from their own code.
  // counts [K] and sums [K, D] must be zero.
  HeadStatistics(const Rows& x, int64_t head, const Indices& indices, const DenseCodes<T>* codes,
                 int64_t num_codes, T* counts, T* sums)
      : x_(x),
        head_(head),
        indices_(indices),
        codes_(codes),
        num_codes_(num_codes),
        counts_(counts),
        sums_(sums) {}

  void run();

 private:
  // Rows of contiguous elements are sorted by code and summed code by code.
  void sum_sorted();
  // Rows that lie side by side (channels first) are walked in order, some columns at a time.
  bool sum_columns(const std::vector<bool>* finite);
  bool column_task(int64_t begin, int64_t width, const std::vector<bool>* finite);
  std::vector<bool> find_finite() const;

  struct Partial {
    int64_t code;
    int64_t rows;
  };
  void sorted_task(const SortedRows& sorted, int64_t task, Partial* partials, double* totals);
  int64_t add_rows(const int64_t* ids, int64_t count, int64_t code, T* raw, double* batch,
                   double* total) const;
  void merge(const std::vector<Partial>& partials, const double* totals);
  void write(int64_t code, int64_t rows, const double* total);

  const Rows& x_;
  int64_t head_;
  const Indices& indices_;
  const DenseCodes<T>* codes_;
  int64_t num_codes_;
  T* counts_;
  T* sums_;
};

}  // namespace fastvq
