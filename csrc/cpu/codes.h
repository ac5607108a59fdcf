// SPDX-License-Identifier: Apache-2.0
// A codebook as it is compared in float64.
#pragma once

#include "dense.h"

#include <cstdint>

namespace fastvq {

enum class Metric { kEuclidean, kCosine, kDot };

// 1 / |row| in float64, 0 for a zero row, NaN for a row with a NaN or Inf. `square` is its squared
// norm as measured, which float64 rows may overflow.
template <class T>
double inverse_norm(double square, const T* row, int64_t depth);

// The codes of one head. A code with a NaN or Inf can never be the answer and is marked so.
template <class T>
class Codes {
 public:
  Codes(const Rows& codebook, int64_t head, Metric metric);

  // Also marks codes equal in value to one of a lower index, which they can only tie with. Many
  // equal codes (a collapsed codebook, unused rows of zeros) then cost nothing.
  void drop_duplicates();

  CodeView<T> view() const {
    return {values_.values(), values_.stride(), padded_depth_,
            count_,           scale_.get(),     offset_.get()};
  }
  Measure measure(const T* row) const {
    return row_kernels<T>().measure(row, 1.0, origin_.get(), padded_depth_);
  }
  Metric metric() const { return metric_; }
  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t padded_depth() const { return padded_depth_; }
  // The lowest index that can be chosen, -1 if no code is finite.
  int64_t first() const { return first_; }
  bool usable(int64_t k) const { return offset_[k] == offset_[k]; }
  // Squared norm of a usable code, times its squared scale.
  double square(int64_t k) const { return squares_[k] * scale_[k] * scale_[k]; }

 private:
  void weigh(int64_t k);

  Metric metric_;
  int64_t count_, depth_, padded_depth_;
  int64_t first_ = -1;
  DenseCodes<T> values_;
  Buffer<double> scale_, offset_, squares_, origin_;
};

}  // namespace fastvq
