// SPDX-License-Identifier: Apache-2.0
// The codes of one head as plain rows of the computing type: in place where they already are that.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "parallel.h"

#include <algorithm>
#include <cstdint>

namespace fastvq {

template <class T>
class DenseCodes {
 public:
  // Rows are padded with zeros to `padded_depth` elements.
  DenseCodes(const Rows& codebook, int64_t head, int64_t padded_depth) {
    constexpr ScalarType same = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;
    if (codebook.dtype == same && codebook.depth_stride == 1 && codebook.depth == padded_depth) {
      stride_ = codebook.length_stride;
      values_ = static_cast<const T*>(codebook.data) + codebook.offset(0, head);
      return;
    }
    stride_ = padded_depth;
    storage_ = Buffer<T>(codebook.length * stride_);
    values_ = storage_.get();
    run_tasks(divide_up(codebook.length, kCodesPerTask), [&](int64_t task) {
      const int64_t first = task * kCodesPerTask;
      const int64_t size = std::min(kCodesPerTask, codebook.length - first);
      const RowSet set{&codebook, head, first, size, nullptr};
      row_kernels<T>().read(set, storage_.get() + first * stride_, stride_);
    });
  }

  const T* row(int64_t k) const { return values_ + k * stride_; }
  const T* values() const { return values_; }
  int64_t stride() const { return stride_; }

 private:
  static constexpr int64_t kCodesPerTask = 64;

  const T* values_;
  int64_t stride_;
  Buffer<T> storage_;
};

}  // namespace fastvq
