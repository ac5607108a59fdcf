// SPDX-License-Identifier: Apache-2.0
#include "packed_codes.h"

#include "parallel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastvq {
namespace {

constexpr int64_t kCodesPerTask = 64;
// Codes are scaled so that the longest is at most about 2^20: rows 2^80 times longer still do not
// overflow float32 scores, and codes 2^60 times shorter do not vanish.
constexpr int kReachExponent = 20;
// The unit must be a float32.
constexpr int kLargestUnitExponent = 120;
// A code this many times farther out than the median one would drag the centre away from the rest.
constexpr double kOutlierRatio = 16.0;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

PackedCodes::PackedCodes(const Codes<float>& codes, const ScoreKernels& pass)
    : pass_(pass),
      blocks_(divide_up(codes.count(), pass.block_codes)),
      words_(pass.words(codes.depth())),
      block_size_(pass.block_codes * words_),
      packed_(blocks_ * block_size_),
      bias_(blocks_ * pass.block_codes),
      centre_(codes.padded_depth()),
      squares_(blocks_ * pass.block_codes),
      errors_(blocks_ * pass.block_codes) {
  for (int64_t k = 0; k < codes.count(); ++k) {
    squares_[k] = codes.square(k);
    if (codes.usable(k)) origin_reach_ = std::max(origin_reach_, std::sqrt(squares_[k]));
  }
  find_centre(codes, kInfinity);
  pack(codes);
  const double limit = outlier_limit(codes);
  if (reach_ * reach_ > limit) {
    find_centre(codes, limit);
    pack(codes);
  }
}

// The mean, rounded so that float32 rows can be centred too. It is summed in fixed parts.
void PackedCodes::find_centre(const Codes<float>& codes, double limit) {
  const CodeView<float> view = codes.view();
  const int64_t parts = divide_up(view.count, kCodesPerTask);
  const Buffer<double> weights(view.count);
  const Buffer<double> sums(parts * view.depth);
  double used = 0.0;
  for (int64_t k = 0; k < view.count; ++k) {
    const bool counts = codes.usable(k) && squares_[k] <= limit;
    weights[k] = counts ? view.scale[k] : 0.0;
    used += counts;
  }
  run_tasks(parts, [&](int64_t part) {
    const int64_t first = part * kCodesPerTask;
    double* sum = sums.get() + part * view.depth;
    std::fill_n(sum, view.depth, 0.0);
    row_kernels<float>().weighted_sum(view.values + first * view.stride, view.stride,
                                      std::min(kCodesPerTask, view.count - first), view.depth,
                                      weights.get() + first, sum);
  });
  for (int64_t d = 0; d < view.depth; ++d) {
    double total = 0.0;
    for (int64_t part = 0; part < parts; ++part) total += sums[part * view.depth + d];
    centre_[d] = static_cast<float>(total / used);
  }
}

void PackedCodes::pack(const Codes<float>& codes) {
  double square = 0.0;
  for (int64_t d = 0; d < codes.depth(); ++d) square += centre_[d] * centre_[d];
  const double longest = origin_reach_ + std::sqrt(square);
  if (longest > 0.0) {
    unit_ = std::ldexp(1.0, std::min(kLargestUnitExponent, kReachExponent - std::ilogb(longest)));
  }
  const int64_t block_codes = pass_.block_codes;
  const bool euclidean = codes.metric() == Metric::kEuclidean;
  run_tasks(blocks_, [&](int64_t b) {
    const int64_t begin = b * block_codes;
    pass_.pack_codes(codes.view(), codes.depth(), centre_.get(), unit_, begin,
                     packed_.get() + b * block_size_, squares_.get() + begin,
                     errors_.get() + begin);
    for (int64_t k = begin; k < begin + block_codes; ++k) {
      const bool used = k < codes.count() && codes.usable(k);
      const double half = euclidean && used ? -0.5 * squares_[k] * unit_ * unit_ : 0.0;
      bias_[k] = used ? static_cast<float>(half) : -std::numeric_limits<float>::infinity();
    }
  });
  reach_ = lost_ = 0.0;
  for (int64_t k = 0; k < codes.count(); ++k) {
    if (!codes.usable(k)) continue;
    reach_ = std::max(reach_, squares_[k]);
    const double square = std::max(squares_[k] * unit_ * unit_, kShortest * kShortest);
    lost_ = std::max(lost_, errors_[k] / square);
  }
  reach_ = std::sqrt(reach_);
  lost_ = std::sqrt(lost_);
}

double PackedCodes::outlier_limit(const Codes<float>& codes) const {
  std::vector<double> squares;
  for (int64_t k = 0; k < codes.count(); ++k) {
    if (codes.usable(k)) squares.push_back(squares_[k]);
  }
  const auto middle = squares.begin() + static_cast<int64_t>(squares.size() / 2);
  std::nth_element(squares.begin(), middle, squares.end());
  return *middle * kOutlierRatio * kOutlierRatio;
}

}  // namespace fastvq
