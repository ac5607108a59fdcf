// SPDX-License-Identifier: Apache-2.0
// Chosen codes [B, M, H] of any strides; -1 means that a row has none.
#pragma once

#include "parallel.h"
#include "rows.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastvq {

class Indices {
 public:
  Indices(const Tensor& t, const Rows& x)
      : data_(nullptr), length_(x.length), heads_(x.heads), count_(x.count()) {
    check(t.scalar_type() == ScalarType::Long, "indices must be int64, got ",
          torch::headeronly::toString(t.scalar_type()));
    check(t.dim() == 3 && t.size(0) == x.batch && t.size(1) == x.length && t.size(2) == x.heads,
          "indices must be [B, M, H] = [", x.batch, ", ", x.length, ", ", x.heads, "], got ",
          shape_text(t));
    data_ = t.const_data_ptr<int64_t>();
    batch_stride_ = t.stride(0);
    length_stride_ = t.stride(1);
    head_stride_ = t.stride(2);
    flat_ = batch_stride_ == length_ * length_stride_ || x.batch <= 1;
  }

  int64_t at(int64_t row, int64_t head) const {
    if (flat_) return data_[row * length_stride_ + head * head_stride_];
    return data_[(row / length_) * batch_stride_ + (row % length_) * length_stride_ +
                 head * head_stride_];
  }

  // Throws if an index is neither -1 nor a code.
  void check_range(int64_t num_codes) const {
    std::atomic<bool> bad{false};
    run_tasks(divide_up(count_, kPerTask), [&](int64_t task) {
      const int64_t end = std::min(count_, (task + 1) * kPerTask);
      bool outside = false;
      for (int64_t head = 0; head < heads_; ++head) {
        for (int64_t row = task * kPerTask; row < end; ++row) {
          // -1 wraps to zero
          outside |= static_cast<uint64_t>(at(row, head)) + 1 > static_cast<uint64_t>(num_codes);
        }
      }
      if (outside) bad = true;
    });
    if (bad) name_first(num_codes);
  }

 private:
  void name_first(int64_t num_codes) const {
    for (int64_t i = 0; i < count_ * heads_; ++i) {
      const int64_t index = at(i / heads_, i % heads_);
      check<std::out_of_range>(index >= -1 && index < num_codes, "indices must be in [-1, K = ",
                               num_codes, "), got ", index);
    }
  }

  static constexpr int64_t kPerTask = 1 << 15;

  const int64_t* data_;
  int64_t length_, heads_, count_;
  int64_t batch_stride_ = 0, length_stride_ = 0, head_stride_ = 0;
  bool flat_ = false;
};

}  // namespace fastvq
