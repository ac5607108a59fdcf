// SPDX-License-Identifier: Apache-2.0
// A codebook made ready for search: exact values for the float64 comparison, packed for scores.
#pragma once

#include "dense.h"

#include <cstdint>

namespace fastvq {

enum class Metric { kEuclidean, kCosine, kDot };

// 1 / |row| in float64, 0 for a zero row, NaN for a row with a NaN or Inf. `square` is its squared
// norm as measured, which float64 rows may overflow.
template <class T>
double inverse_norm(double square, const T* row, int64_t depth);

// One head's codes as they are compared in float64. A code with a NaN or Inf, or equal in value to
// one of a lower index, can never be the answer and is marked so.
template <class T>
class Codes {
 public:
  Codes(const Rows& codebook, int64_t head, Metric metric);

  CodeView<T> view() const {
    return {values_.values(), values_.stride(), padded_depth_,
            count_,           scale_.get(),     offset_.get()};
  }
  Metric metric() const { return metric_; }
  Measure measure(const T* row) const {
    return row_kernels<T>().measure(row, 1.0, origin_.get(), padded_depth_);
  }
  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t padded_depth() const { return padded_depth_; }
  // The lowest index that can be chosen, -1 if no code is finite.
  int64_t first() const { return first_; }
  bool usable(int64_t k) const { return offset_[k] == offset_[k]; }

 private:
  void weigh(uint64_t* hashes);
  void drop_duplicates(const uint64_t* hashes);

  Metric metric_;
  int64_t count_, depth_, padded_depth_;
  int64_t first_ = -1;
  DenseCodes<T> values_;
  Buffer<double> scale_, offset_, origin_;
};

// The same codes centred, scaled by a power of two, rounded to float32 and packed by blocks.
class PackedCodes {
 public:
  explicit PackedCodes(const Codes<float>& codes);

  const float* block(int64_t b) const { return packed_.get() + b * block_size_; }
  const float* bias(int64_t b) const { return bias_.get() + b * kernels().block_codes; }
  int64_t blocks() const { return blocks_; }
  int64_t block_size() const { return block_size_; }

  const double* centre() const { return centre_.get(); }  // [padded depth], float32 values
  double unit() const { return unit_; }                    // a power of two
  double reach() const { return reach_; }                  // max |code - centre|
  double origin_reach() const { return origin_reach_; }    // max |code|

 private:
  void find_centre(const Codes<float>& codes, const Buffer<double>& squares, double limit);
  double measure(const Codes<float>& codes, Buffer<double>& squares) const;
  void pack(const Codes<float>& codes, const Buffer<double>& squares);

  int64_t blocks_, block_size_;
  double unit_ = 1.0, reach_ = 0.0, origin_reach_ = 0.0;
  Buffer<float> packed_, bias_;
  Buffer<double> centre_;
};

}  // namespace fastvq
