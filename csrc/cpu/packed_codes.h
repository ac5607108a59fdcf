// SPDX-License-Identifier: Apache-2.0
// A codebook as it is scored in float32: centred, scaled by a power of two, packed by blocks.
#pragma once

#include "codes.h"

#include <cstdint>

namespace fastvq {

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
  // The mean of the codes no farther from the last centre (at first the origin) than the limit.
  void find_centre(const Codes<float>& codes, double limit);
  void pack(const Codes<float>& codes);
  // Squared distance beyond which a code is an outlier.
  double outlier_limit(const Codes<float>& codes) const;

  int64_t blocks_, block_size_;
  double unit_ = 1.0, reach_ = 0.0, origin_reach_ = 0.0;
  Buffer<float> packed_, bias_;
  Buffer<double> centre_;
  Buffer<double> squares_;  // |code - centre|^2
};

}  // namespace fastvq
