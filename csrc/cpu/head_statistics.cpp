// SPDX-License-Identifier: Apache-2.0
#include "head_statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fastvq {
namespace {

// Sorted positions a task sums; fixed, so that the order of every sum is too.
constexpr int64_t kPositionsPerTask = 1024;
constexpr int64_t kRowsAtOnce = 16;
constexpr int64_t kRowsPerTile = 128;
constexpr int64_t kMostColumns = 16;
constexpr int64_t kNoCode = -1;

// The sum of the elements' products with zero: NaN as soon as one of them is NaN or Inf.
template <class T>
bool all_finite(const T* values, int64_t size) {
  T probe = 0;
  for (int64_t i = 0; i < size; ++i) probe += values[i] * T(0);
  return probe == T(0);
}

}  // namespace

template <class T>
void HeadStatistics<T>::run() {
  if (x_.depth_stride == 1 || x_.length_stride != 1) return sum_sorted();
  if (sum_columns(nullptr)) return;
  const std::vector<bool> finite = find_finite();
  sum_columns(&finite);
}

template <class T>
void HeadStatistics<T>::write(int64_t code, int64_t rows, const double* total) {
  counts_[code] = static_cast<T>(rows);
  for (int64_t d = 0; d < x_.depth; ++d) sums_[code * x_.depth + d] = static_cast<T>(total[d]);
}

// Adds some rows of one code to its total; returns how many of them are finite.
template <class T>
int64_t HeadStatistics<T>::add_rows(const int64_t* ids, int64_t count, int64_t code, T* raw,
                                    double* batch, double* total) const {
  const RowKernels<T>& kernel = row_kernels<T>();
  const int64_t depth = x_.depth;
  const T* origin = codes_ ? codes_->row(code) : nullptr;
  int64_t added = 0;
  for (int64_t i = 0; i < count; i += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, count - i);
    kernel.read({&x_, head_, 0, rows, ids + i}, raw, depth);
    std::fill_n(batch, depth, 0.0);
    kernel.accumulate(raw, depth, rows, depth, origin, batch);
    added += rows;
    if (!all_finite(batch, depth)) {
      // a spoiled row is among them: add the others one by one
      std::fill_n(batch, depth, 0.0);
      for (int64_t r = 0; r < rows; ++r) {
        if (all_finite(raw + r * depth, depth)) {
          kernel.accumulate(raw + r * depth, depth, 1, depth, origin, batch);
        } else {
          --added;
        }
      }
    }
    for (int64_t d = 0; d < depth; ++d) total[d] += batch[d];
  }
  return added;
}

// Sums the codes within a task's positions. A code that reaches over either edge is left as a
// partial sum: at most two a task, in totals[0 .. D) and totals[D .. 2D).
template <class T>
void HeadStatistics<T>::sorted_task(const SortedRows& sorted, int64_t task, Partial* partials,
                                    double* totals) {
  const int64_t begin = task * kPositionsPerTask;
  const int64_t end = std::min(sorted.size(), begin + kPositionsPerTask);
  const Buffer<T> raw(kRowsAtOnce * x_.depth);
  const Buffer<double> sums(2 * x_.depth);
  double* batch = sums.get() + x_.depth;
  partials[0] = partials[1] = {kNoCode, 0};
  int64_t slot = 0;
  for (int64_t p = begin, code = sorted.code_at(begin); p < end; ++code) {
    const int64_t stop = std::min(end, sorted.start(code + 1));
    if (stop <= p) continue;
    const bool whole = sorted.start(code) >= begin && sorted.start(code + 1) <= end;
    double* total = whole ? sums.get() : totals + slot * x_.depth;
    std::fill_n(total, x_.depth, 0.0);
    const int64_t rows = add_rows(sorted.ids(p), stop - p, code, raw.get(), batch, total);
    if (whole) {
      write(code, rows, total);
    } else {
      partials[slot++] = {code, rows};
    }
    p = stop;
  }
}

template <class T>
void HeadStatistics<T>::merge(const std::vector<Partial>& partials, const double* totals) {
  const Buffer<double> total(x_.depth);
  Partial current{kNoCode, 0};
  const auto flush = [&] {
    if (current.code != kNoCode) write(current.code, current.rows, total.get());
  };
  for (size_t i = 0; i < partials.size(); ++i) {
    const Partial& partial = partials[i];
    if (partial.code == kNoCode) continue;
    if (partial.code != current.code) {
      flush();
      current = {partial.code, 0};
      std::fill_n(total.get(), x_.depth, 0.0);
    }
    current.rows += partial.rows;
    const double* part = totals + static_cast<int64_t>(i) * x_.depth;
    for (int64_t d = 0; d < x_.depth; ++d) total[d] += part[d];
  }
  flush();
}

template <class T>
void HeadStatistics<T>::sum_sorted() {
  const SortedRows sorted(indices_, head_, x_.count(), num_codes_);
  const int64_t tasks = divide_up(sorted.size(), kPositionsPerTask);
  std::vector<Partial> partials(static_cast<size_t>(2 * tasks));
  const Buffer<double> totals(2 * tasks * x_.depth);
  run_tasks(tasks, [&](int64_t task) {
    sorted_task(sorted, task, &partials[static_cast<size_t>(2 * task)],
                totals.get() + 2 * task * x_.depth);
  });
  merge(partials, totals.get());
}

// Sums columns [begin, begin + width) over all rows in order; false if a sum is not finite.
template <class T>
bool HeadStatistics<T>::column_task(int64_t begin, int64_t width,
                                    const std::vector<bool>* finite) {
  Rows columns = x_;
  columns.depth = width;
  columns.data = static_cast<const char*>(x_.data) + begin * x_.depth_stride * x_.element_size();
  const Buffer<double> table(num_codes_ * width);
  std::fill_n(table.get(), num_codes_ * width, 0.0);
  T raw[kRowsPerTile * kMostColumns];
  for (int64_t first = 0; first < x_.count(); first += kRowsPerTile) {
    const int64_t rows = std::min(kRowsPerTile, x_.count() - first);
    row_kernels<T>().read({&columns, head_, first, rows, nullptr}, raw, width);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t code = indices_.at(first + i, head_);
      if (code < 0 || (finite && !(*finite)[static_cast<size_t>(first + i)])) continue;
      row_kernels<T>().accumulate(raw + i * width, width, 1, width,
                                  codes_ ? codes_->row(code) + begin : nullptr,
                                  table.get() + code * width);
    }
  }
  for (int64_t code = 0; code < num_codes_; ++code) {
    for (int64_t d = 0; d < width; ++d) {
      sums_[code * x_.depth + begin + d] = static_cast<T>(table[code * width + d]);
    }
  }
  return all_finite(table.get(), num_codes_ * width);
}

// False if a sum is not finite, and rows have not been told apart yet.
template <class T>
bool HeadStatistics<T>::sum_columns(const std::vector<bool>* finite) {
  const int64_t threads = torch::stable::get_num_threads();
  // every column is summed on its own, so the width changes no result
  const int64_t width = std::clamp<int64_t>(divide_up(x_.depth, threads), 1, kMostColumns);
  std::vector<char> clean(static_cast<size_t>(divide_up(x_.depth, width)));
  run_tasks(static_cast<int64_t>(clean.size()), [&](int64_t task) {
    const int64_t begin = task * width;
    clean[static_cast<size_t>(task)] =
        column_task(begin, std::min(width, x_.depth - begin), finite);
  });
  if (!finite && !std::all_of(clean.begin(), clean.end(), [](char c) { return c; })) return false;
  std::vector<int64_t> counts(static_cast<size_t>(num_codes_));
  for (int64_t row = 0; row < x_.count(); ++row) {
    const int64_t code = indices_.at(row, head_);
    if (code >= 0 && (!finite || (*finite)[static_cast<size_t>(row)])) {
      ++counts[static_cast<size_t>(code)];
    }
  }
  std::copy(counts.begin(), counts.end(), counts_);
  return true;
}

template <class T>
std::vector<bool> HeadStatistics<T>::find_finite() const {
  std::vector<bool> finite(static_cast<size_t>(x_.count()));
  const Buffer<T> raw(kRowsAtOnce * x_.depth);
  for (int64_t first = 0; first < x_.count(); first += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, x_.count() - first);
    row_kernels<T>().read({&x_, head_, first, rows, nullptr}, raw.get(), x_.depth);
    for (int64_t i = 0; i < rows; ++i) {
      finite[static_cast<size_t>(first + i)] = all_finite(raw.get() + i * x_.depth, x_.depth);
    }
  }
  return finite;
}

template class HeadStatistics<float>;
template class HeadStatistics<double>;

}  // namespace fastvq
