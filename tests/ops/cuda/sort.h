// Takes the place of csrc/cuda/sort.h: the same sort, by the standard library.
#pragma once

#include "device.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fastvq {

struct Pairs {
  uint32_t* keys;
  uint32_t* values;
};

inline void sort_pairs(const Device&, const Tensor&, Pairs from, Pairs to, int64_t count,
                       int bits) {
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  for (int64_t i = 0; i < count; ++i) pairs.emplace_back(from.keys[i], from.values[i]);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  std::stable_sort(pairs.begin(), pairs.end(), [&](const auto& a, const auto& b) {
    return (a.first & mask) < (b.first & mask);
  });
  for (int64_t i = 0; i < count; ++i) {
    to.keys[i] = pairs[i].first;
    to.values[i] = pairs[i].second;
  }
}

}  // namespace fastvq
