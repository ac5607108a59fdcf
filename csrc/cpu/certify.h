// SPDX-License-Identifier: Apache-2.0
// When the score of a fast pass proves that a code is not the nearest. Derived here and nowhere else.
//
// Write x for a row and c_k for the codes, both less the centre where the metric allows it, and
// scaled by powers of two as packed. In exact arithmetic the nearest code has the largest
//     S_k = x . c_k - |c_k|^2 / 2   (euclidean),     S_k = x . c_k   (dot; cosine on unit vectors).
//
// 1. Rounding of what is packed. Every element of x and c_k is within a relative 3u of its true
//    value (u = 2^-24; centring, or normalising by a float32 reciprocal), the bias within u.
//    A pass of shorter products then rounds x to x^ and c_k to c^_k, and measures what that took:
//    e = |x - x^| for the row, and l with |c_k - c^_k| <= l |c_k| for every code. By Cauchy-Schwarz
//        |x^ . c^_k - x . c_k| <= e |c_k| + |x^| l |c_k| <= (e + (|x| + e) l) |c_k|.
//    Both are measured, since they are under half of what the worst rounding of every element
//    gives. A pass of float32 products has e = l = 0.
// 2. Rounding of the score. It is a chain of D fused (or D products and D sums, rounded apart)
//    steps that starts at the bias, so it is within gamma_{D+1} (sum_d |x_d c_kd| + |c_k|^2 / 2).
//    Products of two bfloat16 numbers are exact in float32, and their sums are rounded at each term
//    or less often; sums in pairs, in trees or truncated stay within twice that, which n provides.
//    16-bit integers, x^ = p a and c^_k = q_k b_k with integers a and b_k and float32 numbers p and
//    q_k, have exact sums, |a . b_k| <= |a| |b_k| < 2^30; that sum as a float32, p q_k, the product
//    of both with the bias, and the bias are rounded: four steps.
// 3. Together, by Cauchy-Schwarz, with gamma = n u / (1 - n u), the score s_k has
//        |s_k - S_k| <= E(|c_k|),   E(r) = (gamma (|x| + e) + e + (|x| + e) l) r + gamma r^2 / 2,
//    n = D + 16 for float32 products and 2 D + 16 for shorter ones, and the last term absent where
//    there is no bias. Underflow, flushed or gradual, adds at most 2^-126 an operation on either
//    side, and 2^-96 where p q_k vanishes before the sum that it scales (under 24 of the 2^-100
//    below, and n is 24 at least); the float64 evaluations err by 2^-50 (D + 16) times their terms; both are added
//    below. (e is itself a float32 sum of D squares, and rounded up for that.)
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
  Certificate(const Codes<float>& codes, const PackedCodes& packed, const ScoreKernels& pass)
      : metric_(codes.metric()),
        unit_(packed.unit()),
        reach_(packed.reach()),
        origin_reach_(packed.origin_reach()),
        lost_(packed.lost() * kSlack),
        terms_(static_cast<double>(codes.depth() * pass.word_elements) + 16.0),
        gamma_(terms_ * kUnitRoundoff / (1.0 - terms_ * kUnitRoundoff)),
        rounds_(pass.word_elements > 1) {
    double square = 0.0;
    for (int64_t d = 0; d < codes.depth(); ++d) square += packed.centre()[d] * packed.centre()[d];
    centre_norm_ = std::sqrt(square);
  }

  // T of the derivation for a row, the squared length of what packing took of it and the comparison
  // value of its chosen code (`inverse` is the reciprocal norm of the row). Rounded down to a float32.
  float threshold(const Measure& row, double inverse, float squared_loss, double value) const {
    const double loss = rounds_ ? row_loss(squared_loss) : 0.0;
    double bound = 0.0;
    switch (metric_) {
      case Metric::kEuclidean: {
        const double length = std::sqrt(row.square);
        const double radius = std::min(reach_, (length + std::sqrt(value)) * kSlack);
        const double score = 0.5 * (row.square - value) * unit_ * unit_;
        const double doubles = kDoubleError * terms_ * (row.square + value) * unit_ * unit_;
        bound = score - error(length * unit_, loss, radius * unit_, true) - doubles;
        break;
      }
      case Metric::kCosine:
        bound = (1.0 - 0.5 * value - row.dot * inverse) * unit_ - dot_error(1.0, loss);
        break;
      case Metric::kDot:
        bound = (-value - row.dot) * unit_ - dot_error(std::sqrt(row.square) + centre_norm_, loss);
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

  // e of the derivation: squares under 2^-126 may have vanished, each sum rounded down.
  double row_loss(float squared) const {
    return std::sqrt(squared * (1.0 + terms_ * 0x1p-23) + terms_ * 0x1p-126);
  }

  double error(double length, double loss, double radius, bool biased) const {
    // 2^-60 on the radius covers codes that underflow, 2^-100 a term rows and products that do
    const double packed = length + loss;
    const double product = gamma_ * packed + loss + packed * lost_;
    const double square = biased ? 0.5 * radius * radius : 0.0;
    return product * (radius + PackedCodes::kShortest) + gamma_ * square + terms_ * 0x1p-100;
  }

  double dot_error(double length, double loss) const {
    const double doubles = kDoubleError * terms_ * length * origin_reach_ * unit_;
    return error(length, loss, reach_ * unit_, false) + doubles;
  }

  Metric metric_;
  double unit_, reach_, origin_reach_, centre_norm_ = 0.0;
  double lost_, terms_, gamma_;
  bool rounds_;
};

}  // namespace fastvq
