// SPDX-License-Identifier: Apache-2.0
// A stable sort of pairs by the low bits of their keys.
#pragma once

#include "device.h"

#include <torch/csrc/stable/ops.h>

#include <cub/device/device_radix_sort.cuh>

#include <cstdint>

namespace fastvq {

struct Pairs {
  uint32_t* keys;
  uint32_t* values;
};

// `like` names the device of the scratch memory.
inline void sort_pairs(const Device& device, const torch::stable::Tensor& like, Pairs from,
                       Pairs to, int64_t count, int bits) {
  size_t bytes = 0;
  const auto sort = [&](void* scratch) {
    check_cuda(cub::DeviceRadixSort::SortPairs(scratch, bytes, from.keys, to.keys, from.values,
                                               to.values, static_cast<int>(count), 0, bits,
                                               device.stream()),
               "the sort of fastvq");
  };
  sort(nullptr);
  const int64_t shape[] = {static_cast<int64_t>(bytes)};
  auto scratch =
      torch::stable::new_empty(like, {shape, 1}, torch::headeronly::ScalarType::Byte);
  sort(scratch.mutable_data_ptr());
}

}  // namespace fastvq
