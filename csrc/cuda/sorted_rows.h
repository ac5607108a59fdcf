// SPDX-License-Identifier: Apache-2.0
// The rows of every head sorted by code, in ascending order within a code, those without one last.
#pragma once

#include "device.h"
#include "sort.h"
#include "view.h"

#include <torch/csrc/stable/ops.h>

#include <bit>
#include <cstdint>

namespace fastvq {

constexpr int kThreads = 256;
constexpr uint32_t kChunk = 128;  // sorted rows that are added up together

struct Keys {
  Chosen chosen;
  uint32_t rows, num_codes, chunks;
  Pairs out;
  uint32_t* faults;
};

// One key a row: its head and its code, K for a row that has none.
static __global__ void __launch_bounds__(kThreads) key_kernel(Keys a) {
  const int64_t n = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (n < a.chunks) a.faults[int64_t{blockIdx.y} * a.chunks + n] = 0;
  if (n >= a.rows) return;
  const int64_t code = a.chosen.at(static_cast<uint32_t>(n), blockIdx.y);
  const bool inside = code >= 0 && code < a.num_codes;
  const int64_t out = int64_t{blockIdx.y} * a.rows + n;
  a.out.keys[out] =
      blockIdx.y * (a.num_codes + 1) + (inside ? static_cast<uint32_t>(code) : a.num_codes);
  a.out.values[out] = static_cast<uint32_t>(n);
}

struct Sorted {
  Tensor keys, order;  // [H rows]: head h owns positions [h rows, (h + 1) rows)
  Tensor faults;       // [H chunks], zero
};

inline Sorted sort_rows(const Device& device, const Tensor& indices, const Rows& x,
                        int64_t num_codes) {
  const int64_t total = x.count() * x.heads, chunks = divide_up(x.count(), kChunk);
  const auto words = [&](int64_t count) {
    return torch::stable::new_empty(indices, {&count, 1}, ScalarType::Int);
  };
  const auto of = [](Tensor& t) { return static_cast<uint32_t*>(t.mutable_data_ptr()); };
  Tensor keys = words(total), order = words(total);
  Sorted out{words(total), words(total), words(chunks * x.heads)};
  const Pairs pairs{of(keys), of(order)};
  if (total == 0) return out;
  device.launch(key_kernel,
                dim3(static_cast<unsigned>(divide_up(x.count(), kThreads)),
                     static_cast<unsigned>(x.heads)),
                kThreads,
                Keys{chosen_of(indices, x), static_cast<uint32_t>(x.count()),
                     static_cast<uint32_t>(num_codes), static_cast<uint32_t>(chunks), pairs,
                     of(out.faults)});
  const auto most = static_cast<uint64_t>(x.heads * (num_codes + 1));
  sort_pairs(device, indices, pairs, {of(out.keys), of(out.order)}, total,
             static_cast<int>(std::bit_width(most)));
  return out;
}

}  // namespace fastvq
