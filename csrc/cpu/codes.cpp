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
constexpr double kNever = std::numeric_limits<double>::quiet_NaN();

// Weights of a linear hash, odd and without pattern (splitmix64).
std::vector<uint32_t> hash_weights(int64_t size) {
  std::vector<uint32_t> weights(static_cast<size_t>(size));
  uint64_t state = 0;
  for (uint32_t& weight : weights) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    weight = static_cast<uint32_t>(z >> 32) | 1u;
  }
  return weights;
}

}  // namespace

template <class T>
double inverse_norm(double square, const T* row, int64_t depth) {
  // squares of float32 are always inside this range
  if (square > 1e-200 && square < 1e200) return 1.0 / std::sqrt(square);
  T largest = 0;
  for (int64_t d = 0; d < depth; ++d) {
    if (!std::isfinite(row[d])) return kNever;
    largest = std::max(largest, std::abs(row[d]));
  }
  if (largest == T(0)) return 0.0;
  square = 0.0;
  for (int64_t d = 0; d < depth; ++d) {
    const double ratio = row[d] / largest;
    square += ratio * ratio;
  }
  return 1.0 / static_cast<double>(largest) / std::sqrt(square);
}

template double inverse_norm(double, const float*, int64_t);
template double inverse_norm(double, const double*, int64_t);

template <class T>
Codes<T>::Codes(const Rows& codebook, int64_t head, Metric metric)
    : metric_(metric),
      count_(codebook.length),
      depth_(codebook.depth),
      padded_depth_(round_up(codebook.depth, kDepthMultiple)),
      values_(codebook, head, padded_depth_),
      scale_(count_),
      offset_(count_),
      squares_(count_),
      origin_(padded_depth_) {
  std::fill_n(origin_.get(), padded_depth_, 0.0);
  run_tasks(divide_up(count_, kCodesPerTask), [&](int64_t task) {
    const int64_t end = std::min(count_, (task + 1) * kCodesPerTask);
    for (int64_t k = task * kCodesPerTask; k < end; ++k) weigh(k);
  });
  while (++first_ < count_ && !usable(first_)) {
  }
  if (first_ == count_) first_ = -1;
}

template <class T>
void Codes<T>::weigh(int64_t k) {
  const T* code = values_.row(k);
  squares_[k] = measure(code).norm;
  scale_[k] = 1.0;
  offset_[k] = 0.0;
  if (metric_ != Metric::kCosine && std::isfinite(squares_[k])) return;
  const double inverse = inverse_norm(squares_[k], code, depth_);
  if (std::isnan(inverse)) {
    offset_[k] = kNever;
  } else if (metric_ == Metric::kCosine) {
    scale_[k] = inverse;
    // the cosine with a zero code is 0: distance 1, of which |x - 0|^2 / 2 gives only a half
    if (inverse == 0.0) offset_[k] = 1.0;
  }
}

template <class T>
void Codes<T>::drop_duplicates() {
  const std::vector<uint32_t> weights = hash_weights(depth_);
  const Buffer<uint64_t> hashes(count_);
  run_tasks(divide_up(count_, kCodesPerTask), [&](int64_t task) {
    const int64_t end = std::min(count_, (task + 1) * kCodesPerTask);
    for (int64_t k = task * kCodesPerTask; k < end; ++k) {
      hashes[k] = row_kernels<T>().hash(values_.row(k), weights.data(), depth_);
    }
  });
  size_t size = 16;
  while (size < 2 * static_cast<size_t>(count_)) size *= 2;
  std::vector<int64_t> table(size, -1);
  const auto same = [&](int64_t a, int64_t b) {
    const T* left = values_.row(a);
    return hashes[a] == hashes[b] && std::equal(left, left + depth_, values_.row(b));
  };
  for (int64_t k = 0; k < count_; ++k) {
    if (!usable(k)) continue;
    size_t slot = static_cast<size_t>(hashes[k] ^ (hashes[k] >> 32)) & (size - 1);
    while (table[slot] >= 0 && !same(table[slot], k)) slot = (slot + 1) & (size - 1);
    if (table[slot] >= 0) {
      offset_[k] = kNever;
    } else {
      table[slot] = k;
    }
  }
}

template class Codes<float>;
template class Codes<double>;

}  // namespace fastvq
