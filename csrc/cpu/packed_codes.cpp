// SPDX-License-Identifier: Apache-2.0
#include "codes.h"
#include "parallel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastvq {
namespace {

constexpr int64_t kCodesPerTask = 64;
constexpr int64_t kColumnsPerTask = 64;
// Codes are scaled so that the longest is about 2^20: rows 2^80 times longer still do not overflow
// float32 scores, and codes 2^60 times shorter do not vanish.
constexpr int kReachExponent = 20;
// The unit must be a float32.
constexpr int kLargestUnitExponent = 120;
// A code this many times farther out than the median one would drag the centre away from the rest.
constexpr double kOutlierRatio = 16.0;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

PackedCodes::PackedCodes(const Codes<float>& codes)
    : blocks_(divide_up(codes.count(), kernels().block_codes)),
      block_size_(kernels().block_codes * codes.depth()),
      packed_(blocks_ * block_size_),
      bias_(blocks_ * kernels().block_codes),
      centre_(codes.padded_depth()) {
  Buffer<double> squares(codes.count());
  std::fill_n(centre_.get(), codes.padded_depth(), 0.0);
  origin_reach_ = std::sqrt(measure(codes, squares));
  find_centre(codes, squares, kInfinity);
  double largest = measure(codes, squares);

  std::vector<double> sorted;
  for (int64_t k = 0; k < codes.count(); ++k) {
    if (codes.usable(k)) sorted.push_back(squares[k]);
  }
  const auto middle = sorted.begin() + static_cast<int64_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const double limit = *middle * kOutlierRatio * kOutlierRatio;
  if (largest > limit) {
    find_centre(codes, squares, limit);
    largest = measure(codes, squares);
  }
  reach_ = std::sqrt(largest);
  if (reach_ > 0.0) {
    unit_ = std::ldexp(1.0, std::min(kLargestUnitExponent, kReachExponent - std::ilogb(reach_)));
  }
  pack(codes, squares);
}

// The mean of the codes no farther than the limit, rounded so that float32 rows can be centred too.
void PackedCodes::find_centre(const Codes<float>& codes, const Buffer<double>& squares,
                              double limit) {
  const CodeView<float> view = codes.view();
  run_tasks(divide_up(codes.depth(), kColumnsPerTask), [&](int64_t task) {
    const int64_t begin = task * kColumnsPerTask;
    const int64_t size = std::min(kColumnsPerTask, codes.depth() - begin);
    double total[kColumnsPerTask] = {};
    int64_t count = 0;
    for (int64_t k = 0; k < view.count; ++k) {
      if (!codes.usable(k) || squares[k] > limit) continue;
      const float* code = view.values + k * view.stride + begin;
      for (int64_t d = 0; d < size; ++d) total[d] += code[d] * view.scale[k];
      ++count;
    }
    for (int64_t d = 0; d < size; ++d) {
      centre_[begin + d] = static_cast<float>(total[d] / static_cast<double>(count));
    }
  });
}

// Squared distances of the codes from the centre; returns the largest.
double PackedCodes::measure(const Codes<float>& codes, Buffer<double>& squares) const {
  const CodeView<float> view = codes.view();
  run_tasks(divide_up(view.count, kCodesPerTask), [&](int64_t task) {
    const int64_t end = std::min(view.count, (task + 1) * kCodesPerTask);
    for (int64_t k = task * kCodesPerTask; k < end; ++k) {
      squares[k] = kernels()
                       .rows_float
                       .measure(view.values + k * view.stride, view.scale[k], centre_.get(),
                                view.depth)
                       .square;
    }
  });
  double largest = 0.0;
  for (int64_t k = 0; k < view.count; ++k) {
    if (codes.usable(k)) largest = std::max(largest, squares[k]);
  }
  return largest;
}

void PackedCodes::pack(const Codes<float>& codes, const Buffer<double>& squares) {
  const int64_t block_codes = kernels().block_codes;
  const bool euclidean = codes.metric() == Metric::kEuclidean;
  run_tasks(blocks_, [&](int64_t b) {
    kernels().pack_codes(codes.view(), codes.depth(), centre_.get(), unit_, b * block_codes,
                         packed_.get() + b * block_size_);
    for (int64_t k = b * block_codes; k < (b + 1) * block_codes; ++k) {
      const bool used = k < codes.count() && codes.usable(k);
      const double half = euclidean && used ? -0.5 * squares[k] * unit_ * unit_ : 0.0;
      bias_[k] = used ? static_cast<float>(half) : -std::numeric_limits<float>::infinity();
    }
  });
}

}  // namespace fastvq
