// SPDX-License-Identifier: Apache-2.0
// A codebook as a fast pass scores it: centred, scaled by a power of two, packed by blocks.
#pragma once

#include "codes.h"

#include <cstdint>

namespace fastvq {

class PackedCodes {
 public:
  PackedCodes(const Codes<float>& codes, const ScoreKernels& pass);

  const float* block(int64_t b) const { return packed_.get() + b * block_size_; }
  const float* bias(int64_t b) const { return bias_.get() + b * pass_.block_codes; }
  int64_t blocks() const { return blocks_; }
  int64_t block_size() const { return block_size_; }

  const double* centre() const { return centre_.get(); }  // [padded depth], float32 values
  double unit() const { return unit_; }                    // a power of two
  double reach() const { return reach_; }                  // max |code - centre|
  double origin_reach() const { return origin_reach_; }    // max |code|
  // The longest part of a code, less the centre, that packing lost: of its length, which for codes
  // shorter than kShortest once scaled counts as that.
  double lost() const { return lost_; }
  static constexpr double kShortest = 0x1p-60;

 private:
  // The mean of the codes no farther from the last centre (at first the origin) than the limit.
  void find_centre(const Codes<float>& codes, double limit);
  void pack(const Codes<float>& codes);
  // Squared distance beyond which a code is an outlier.
  double outlier_limit(const Codes<float>& codes) const;

  const ScoreKernels& pass_;
  int64_t blocks_, words_, block_size_;
  double unit_ = 1.0, reach_ = 0.0, origin_reach_ = 0.0, lost_ = 0.0;
  Buffer<float> packed_, bias_;
  Buffer<double> centre_;
  Buffer<double> squares_;  // |code - centre|^2
  Buffer<double> errors_;   // of its packed words, squared
};

}  // namespace fastvq
