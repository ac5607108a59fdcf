// SPDX-License-Identifier: Apache-2.0
// Row numbers of one head grouped by code, in ascending order within a code (a counting sort).
#pragma once

#include "buffer.h"
#include "indices.h"

#include <cstdint>

namespace fastvq {

class SortedRows {
 public:
  // Rows of index -1 are left out; indices must be in range.
  SortedRows(const Indices& indices, int64_t head, int64_t rows, int64_t num_codes);

  int64_t num_codes() const { return num_codes_; }
  int64_t size() const { return starts_[num_codes_]; }
  // Positions [start(k), start(k + 1)) hold the rows of code k.
  int64_t start(int64_t code) const { return starts_[code]; }
  int64_t count(int64_t code) const { return starts_[code + 1] - starts_[code]; }
  const int64_t* ids(int64_t position) const { return ids_.get() + position; }
  // The code whose rows include this position.
  int64_t code_at(int64_t position) const;

 private:
  int64_t num_codes_;
  Buffer<int64_t> starts_, ids_;
};

}  // namespace fastvq
