// SPDX-License-Identifier: Apache-2.0
// When a float32 score proves that a code is not the nearest. The one place where that is derived.
//
// Write x for a row and c_k for the codes, both less the centre where the metric allows it, and
// scaled by powers of two as packed. In exact arithmetic the nearest code has the largest
//     S_k = x . c_k - |c_k|^2 / 2   (euclidean),     S_k = x . c_k   (dot; cosine on unit vectors).
//
// 1. Rounding of what is packed. Every element of x and c_k is within a relative 3u of its true
//    value (u = 2^-24; centring, or normalising by a float32 reciprocal), the bias within u.
// 2. Rounding of the score. It is a chain of D fused (or D products and D sums, rounded apart)
//    steps that starts at the bias, so it is within gamma_{D+1} (sum_d |x_d c_kd| + |c_k|^2 / 2).
// 3. Together, by Cauchy-Schwarz, with gamma = n u / (1 - n u) and n = D + 16, the score s_k has
//        |s_k - S_k| <= E(|c_k|),     E(r) = gamma (|x| r + r^2 / 2),
//    the square term absent where there is no bias. Underflow, flushed or gradual, adds at most
//    2^-126 an operation on either side, and the float64 evaluations err by 2^-50 (D + 16) times
//    their terms; both are added below.
// 4. Let w be the chosen code and d_w its distance, known in float64: S_w = (|x|^2 - d_w^2) / 2
//    (euclidean), or x . c_w less x . centre. A code with s_k < S_w - E(r) and |c_k| <= r has
//    S_k < S_w and is worse than w. For every code r = max_k |c_k| will do. In the euclidean metric
//    a code with |c_k| > |x| + d_w is farther than d_w by the triangle inequality, so that
//    r = min(max_k |c_k|, |x| + d_w): far outliers in a codebook do not spoil the bound.
// 5. So a row is certified if no group of codes other than w's own scores T = S_w - E(r) or more,
//    and otherwise only groups that score at least T need to be compared exactly; w's is one of
//    them, and every code that ties with w is in one of them.
#pragma once

#include "packed_codes.h"

#include <algorithm>
#include <cmath>

namespace fastvq {

class Certificate {
 public:
  Certificate(const Codes<float>& codes, const PackedCodes& packed)
      : metric_(codes.metric()),
        unit_(packed.unit()),
        reach_(packed.reach()),
        origin_reach_(packed.origin_reach()),
        terms_(static_cast<double>(codes.depth()) + 16.0),
        gamma_(terms_ * kUnitRoundoff / (1.0 - terms_ * kUnitRoundoff)) {
    double square = 0.0;
    for (int64_t d = 0; d < codes.depth(); ++d) square += packed.centre()[d] * packed.centre()[d];
    centre_norm_ = std::sqrt(square);
  }

  // T of the derivation for a row and the comparison value of its chosen code (`inverse` is the
  // reciprocal norm of the row). Rounded down to a float32.
  float threshold(const Measure& row, double inverse, double value) const {
    double bound = 0.0;
    switch (metric_) {
      case Metric::kEuclidean: {
        const double length = std::sqrt(row.square);
        const double radius = std::min(reach_, (length + std::sqrt(value)) * kSlack);
        const double score = 0.5 * (row.square - value) * unit_ * unit_;
        const double doubles = kDoubleError * terms_ * (row.square + value) * unit_ * unit_;
        bound = score - error(length * unit_, radius * unit_, true) - doubles;
        break;
      }
      case Metric::kCosine:
        bound = (1.0 - 0.5 * value - row.dot * inverse) * unit_ - dot_error(1.0);
        break;
      case Metric::kDot:
        bound = (-value - row.dot) * unit_ - dot_error(std::sqrt(row.square) + centre_norm_);
        break;
    }
    // rounded down; where it is subnormal the terms of underflow cover the rounding
    return static_cast<float>(bound - std::abs(bound) * 0x1p-23);
  }

 private:
  static constexpr double kUnitRoundoff = 0x1p-24;
  static constexpr double kDoubleError = 0x1p-50;
  // covers the rounding of the radius itself
  static constexpr double kSlack = 1.0 + 0x1p-20;

  double error(double length, double radius, bool biased) const {
    // 2^-60 on the radius covers codes that underflow, 2^-100 a term rows and products that do
    const double square = biased ? 0.5 * radius * radius : 0.0;
    return gamma_ * (length * (radius + 0x1p-60) + square) + terms_ * 0x1p-100;
  }

  double dot_error(double length) const {
    const double doubles = kDoubleError * terms_ * length * origin_reach_ * unit_;
    return error(length, reach_ * unit_, false) + doubles;
  }

  Metric metric_;
  double unit_, reach_, origin_reach_, centre_norm_ = 0.0;
  double terms_, gamma_;
};

}  // namespace fastvq
