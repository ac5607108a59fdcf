// SPDX-License-Identifier: Apache-2.0
#include "head_statistics.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace fastvq {
namespace {

constexpr int64_t kRowsPerTile = 128;
constexpr int64_t kMostColumns = 16;
constexpr int64_t kNoCode = -1;

// Eight sums of the elements' products with zero: NaN as soon as one of them is NaN or Inf.
template <class T>
bool all_finite(const T* values, int64_t size) {
  constexpr int64_t lanes = 8;
  T probes[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    for (int64_t j = 0; j < lanes; ++j) probes[j] += values[i + j] * T(0);
  }
  for (; i < size; ++i) probes[0] += values[i] * T(0);
  return std::all_of(probes, probes + lanes, [](T probe) { return probe == T(0); });
}

template <class T>
class ColumnSums {
  static constexpr bool kSubtractsEach = subtracts_each<T>();

 public:
  explicit ColumnSums(const HeadStatistics<T>& head)
      : head_(head), x_(head.x), chosen_(head.x.count()) {
    for (int64_t row = 0; row < x_.count(); ++row) chosen_[row] = head.indices.at(row, head.head);
  }

  void run() {
    if (sum()) return;
    leave_out_spoiled();
    sum();
  }

 private:
  // False if a sum is not finite.
  bool sum() {
    count();
    const int64_t threads = torch::stable::get_num_threads();
    // every column is summed on its own, so the width changes no result
    const int64_t width = std::clamp<int64_t>(divide_up(x_.depth, threads), 1, kMostColumns);
    std::atomic<bool> finite{true};
    run_tasks(divide_up(x_.depth, width), [&](int64_t task) {
      const int64_t begin = task * width;
      if (!sum_task(begin, std::min(width, x_.depth - begin))) finite = false;
    });
    return finite;
  }

  void count() {
    std::vector<int64_t> counts(static_cast<size_t>(head_.num_codes));
    for (int64_t row = 0; row < x_.count(); ++row) {
      if (chosen_[row] >= 0) ++counts[static_cast<size_t>(chosen_[row])];
    }
    std::copy(counts.begin(), counts.end(), head_.counts);
  }

  // Sums columns [begin, begin + width) over all rows in order.
  bool sum_task(int64_t begin, int64_t width) {
    Rows columns = x_;
    columns.depth = width;
    columns.data = static_cast<const char*>(x_.data) + begin * x_.depth_stride * x_.element_size();
    const Buffer<double> table(head_.num_codes * width);
    std::fill_n(table.get(), head_.num_codes * width, 0.0);
    T raw[kRowsPerTile * kMostColumns];
    for (int64_t first = 0; first < x_.count(); first += kRowsPerTile) {
      const int64_t rows = std::min(kRowsPerTile, x_.count() - first);
      row_kernels<T>().read({&columns, head_.head, first, rows, nullptr}, raw, width);
      if (kSubtractsEach && head_.codes) subtract_codes(raw, first, rows, begin, width);
      row_kernels<T>().scatter(raw, chosen_.get() + first, rows, width, table.get());
    }
    write(table.get(), begin, width);
    return all_finite(table.get(), head_.num_codes * width);
  }

  void subtract_codes(T* raw, int64_t first, int64_t rows, int64_t begin, int64_t width) const {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t code = chosen_[first + i];
      if (code < 0) continue;
      for (int64_t d = 0; d < width; ++d) raw[i * width + d] -= head_.codes->row(code)[begin + d];
    }
  }

  void write(const double* table, int64_t begin, int64_t width) const {
    for (int64_t k = 0; k < head_.num_codes; ++k) {
      T* out = head_.sums + k * x_.depth + begin;
      if (!kSubtractsEach && head_.codes && head_.counts[k] > 0) {
        const double count = static_cast<double>(head_.counts[k]);
        const T* code = head_.codes->row(k) + begin;
        for (int64_t d = 0; d < width; ++d) {
          out[d] = static_cast<T>(table[k * width + d] - count * code[d]);
        }
      } else {
        for (int64_t d = 0; d < width; ++d) out[d] = static_cast<T>(table[k * width + d]);
      }
    }
  }

  void leave_out_spoiled() {
    const Buffer<T> raw(kRowsPerTile * x_.depth);
    for (int64_t first = 0; first < x_.count(); first += kRowsPerTile) {
      const int64_t rows = std::min(kRowsPerTile, x_.count() - first);
      row_kernels<T>().read({&x_, head_.head, first, rows, nullptr}, raw.get(), x_.depth);
      for (int64_t i = 0; i < rows; ++i) {
        if (!all_finite(raw.get() + i * x_.depth, x_.depth)) chosen_[first + i] = kNoCode;
      }
    }
  }

  const HeadStatistics<T>& head_;
  const Rows& x_;
  Buffer<int64_t> chosen_;
};

}  // namespace

template <class T>
void sum_columns(const HeadStatistics<T>& head) {
  ColumnSums<T>(head).run();
}

template void sum_columns<float>(const HeadStatistics<float>&);
template void sum_columns<double>(const HeadStatistics<double>&);

}  // namespace fastvq
