// SPDX-License-Identifier: Apache-2.0
// One side of a matrix of pairs against all of the other, a block of pairs at a time.
//
// One side owns the results and is cut into tasks; each task goes once over the other side, a block
// at a time, which all of its owners use while it is in the cache. An owner's sums are its own and
// in the order of the blocks, whatever the tasks.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>

namespace fastvq {

constexpr int64_t kTogether = 4;   // owners in the kernels
constexpr int64_t kOwners = 64;    // at most, in a task

struct Sizes {
  int64_t heads, rows, codes, depth;
};

inline Sizes sizes_of(const Tensor& x, const Tensor& codebook) {
  check(x.dim() == 3 && codebook.dim() == 3 && x.size(0) == codebook.size(0) &&
            x.size(2) == codebook.size(2) && codebook.size(1) > 0,
        "x and codebook must be [H, N, D] and [H, K, D] with K > 0, got ", shape_text(x), " and ",
        shape_text(codebook));
  return {x.size(0), x.size(1), codebook.size(1), x.size(2)};
}

inline bool is_dot(const std::string& metric) {
  check(metric == "dot" || metric == "euclidean", "metric must be euclidean or dot, got '", metric,
        "'");
  return metric == "dot";
}

// The elements of a contiguous tensor of the dtype T.
template <class T>
const T* elements(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  constexpr ScalarType dtype = std::is_same_v<T, int64_t> ? ScalarType::Long
                               : sizeof(T) == 4           ? ScalarType::Float
                                                          : ScalarType::Double;
  bool fits = t.is_contiguous() && t.scalar_type() == dtype &&
              t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (const int64_t size : shape) fits = fits && t.size(i++) == size;
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  check(fits, name, " must be contiguous ", torch::headeronly::toString(dtype), " [", wanted,
        "], got ", torch::headeronly::toString(t.scalar_type()), " ", shape_text(t));
  return t.const_data_ptr<T>();
}

template <class T>
const T* elements(const std::optional<Tensor>& t, const char* name,
                  std::initializer_list<int64_t> shape) {
  return t ? elements<T>(*t, name, shape) : nullptr;
}

// Rows [count, depth] as panels of columns, zeros at the end.
template <class T>
Buffer<T> packed(const T* rows, int64_t count, int64_t depth) {
  const int64_t panel = softmax_kernels<T>().panel;
  const int64_t panels = round_up(count, kBlock) / panel;
  Buffer<T> out(panels * panel * depth);
  run_tasks(panels, [&](int64_t p) {
    T* to = out.get() + p * panel * depth;
    for (int64_t j = 0; j < panel; ++j) {
      const int64_t row = p * panel + j;
      for (int64_t d = 0; d < depth; ++d) {
        to[d * panel + j] = row < count ? rows[row * depth + d] : 0;
      }
    }
  });
  return out;
}

// Rows [count, depth] with the depth and the count filled up: zeros, or `rest` in new rows.
template <class T>
Buffer<T> padded(const T* rows, int64_t count, int64_t depth, int64_t padded_depth, T rest = 0) {
  const int64_t total = round_up(count, kBlock);
  Buffer<T> out(total * padded_depth);
  run_tasks(divide_up(total, kBlock), [&](int64_t task) {
    for (int64_t row = task * kBlock; row < (task + 1) * kBlock; ++row) {
      T* to = out.get() + row * padded_depth;
      const int64_t taken = row < count ? depth : 0;
      std::copy_n(rows + (row < count ? row : 0) * depth, taken, to);
      std::fill(to + taken, to + padded_depth, rest);
    }
  });
  return out;
}

// Rows [count, channels] as blocks of panels of channels, [block][panel][row][channel], zeros where
// there is no row or, up to `padded_channels`, no channel.
template <class T>
Buffer<T> blocked(const T* rows, int64_t count, int64_t channels, int64_t padded_channels) {
  const int64_t panel = softmax_kernels<T>().panel, blocks = divide_up(count, kBlock);
  Buffer<T> out(blocks * kBlock * padded_channels);
  run_tasks(blocks, [&](int64_t b) {
    T* to = out.get() + b * kBlock * padded_channels;
    for (int64_t c = 0; c < padded_channels; c += panel) {
      const int64_t width = std::min(panel, padded_channels - c);
      const int64_t taken = std::clamp<int64_t>(channels - c, 0, width);
      for (int64_t row = b * kBlock; row < (b + 1) * kBlock; ++row, to += width) {
        const int64_t some = row < count ? taken : 0;
        std::copy_n(rows + (row < count ? row * channels + c : 0), some, to);
        std::fill(to + some, to + width, T(0));
      }
    }
  });
  return out;
}

// Calls work(first, last) for ranges of owners, in parallel; scratch memory is work's own.
template <class Work>
void for_owners(int64_t owners, const Work& work) {
  const int64_t share = divide_up(owners, 4 * torch::stable::get_num_threads());
  const int64_t step = std::clamp(round_up(share, kTogether), kTogether, kOwners);
  run_tasks(divide_up(owners, step), [&](int64_t task) {
    work(task * step, std::min(owners, (task + 1) * step));
  });
}

// Four rows from `first` on, the last one again where there are fewer.
template <class T>
struct Four {
  const T* rows[kTogether];
  Four(const T* base, int64_t first, int64_t last, int64_t depth) {
    for (int64_t r = 0; r < kTogether; ++r) rows[r] = base + std::min(first + r, last - 1) * depth;
  }
};

// Calls take(owner, first other, logits) for each owner and block of others.
template <class T, class Take>
void for_logits(const T* owners, int64_t owner_count, const T* others, int64_t other_count,
                int64_t depth, bool dot, T scale, const Take& take) {
  const SoftmaxKernels<T>& kernel = softmax_kernels<T>();
  const Buffer<T> panels = packed(others, other_count, depth);
  for_owners(owner_count, [&](int64_t first, int64_t last) {
    Buffer<T> logits(kTogether * kBlock);
    auto state = take(first, last);
    for (int64_t j = 0; j < other_count; j += kBlock) {
      for (int64_t i = first; i < last; i += kTogether) {
        const Four<T> four(owners, i, last, depth);
        kernel.products(four.rows, panels.get() + j * depth, kBlock / kernel.panel, depth, dot,
                        scale, logits.get(), kBlock);
        state.block(i, std::min(kTogether, last - i), j, logits.get());
      }
    }
    state.finish();
  });
}

}  // namespace fastvq
