// SPDX-License-Identifier: Apache-2.0
// Rows of one head grouped by code, in ascending order within a code (a counting sort).
#pragma once

#include "buffer.h"
#include "indices.h"

#include <cstdint>

namespace fastvq {

class SortedRows {
 public:
  // Rows of index -1 are left out; indices must be in range.
  SortedRows(const Rows& x, int64_t head, const Indices& indices, int64_t num_codes);

  int64_t num_codes() const { return num_codes_; }
  int64_t size() const { return starts_[num_codes_]; }
  // Positions [start(k), start(k + 1)) hold the rows of code k.
  int64_t start(int64_t code) const { return starts_[code]; }
  // Where the rows begin, in elements of x; kOffsetsAhead more than there are rows may be read.
  const int64_t* offsets(int64_t position) const { return offsets_.get() + position; }

 private:
  int64_t num_codes_;
  Buffer<int64_t> starts_, offsets_;
};

}  // namespace fastvq
