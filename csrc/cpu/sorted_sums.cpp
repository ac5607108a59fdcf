// SPDX-License-Identifier: Apache-2.0
#include "head_statistics.h"
#include "sorted_rows.h"

#include <algorithm>
#include <vector>

namespace fastvq {
namespace {

// Rows and codes that a task takes; fixed, so that the order of every sum is too.
constexpr int64_t kWorkPerTask = 512;
constexpr int64_t kNoCode = -1;

template <class X, class T>
class SortedSums {
 public:
  explicit SortedSums(const HeadStatistics<T>& head)
      : head_(head),
        depth_(head.x.depth),
        x_(static_cast<const X*>(head.x.data)),
        sorted_(head.x, head.head, head.indices, head.num_codes),
        // a code counts as one row more than it has, which shares out those without rows as well
        work_(sorted_.size() + head.num_codes),
        tasks_(divide_up(work_, kWorkPerTask)),
        partials_(static_cast<size_t>(2 * tasks_)),
        totals_(2 * tasks_ * depth_) {}

  void run() {
    run_tasks(tasks_, [&](int64_t task) { sum_task(task); });
    merge();
  }

 private:
  struct Partial {
    int64_t code;
    int64_t rows;
  };

  // The work of code k is [work_begin(k), work_begin(k + 1)).
  int64_t work_begin(int64_t code) const { return sorted_.start(code) + code; }

  int64_t code_at(int64_t work) const {
    int64_t low = 0;
    for (int64_t high = head_.num_codes; high - low > 1;) {
      const int64_t middle = (low + high) / 2;
      (work_begin(middle) <= work ? low : high) = middle;
    }
    return low;
  }

  // Sums the codes of a task. A code that reaches over either edge is left as a partial sum: at
  // most two a task.
  void sum_task(int64_t task) {
    const int64_t begin = task * kWorkPerTask;
    const int64_t end = std::min(work_, begin + kWorkPerTask);
    int64_t slot = 2 * task;
    partials_[static_cast<size_t>(slot)] = partials_[static_cast<size_t>(slot + 1)] = {kNoCode, 0};
    for (int64_t k = code_at(begin); k < head_.num_codes && work_begin(k) < end; ++k) {
      const int64_t stop = sorted_.start(k + 1);
      const int64_t first = std::max(sorted_.start(k), begin - k);
      const int64_t count = std::min(stop, end - k) - first;
      if (work_begin(k) >= begin && work_begin(k + 1) <= end) {
        head_.counts[k] =
            static_cast<T>(sum(sums().whole, first, count, k, head_.sums + k * depth_));
      } else {
        const int64_t rows = sum(sums().part, first, count, k, totals_.get() + slot * depth_);
        partials_[static_cast<size_t>(slot++)] = {k, rows};
      }
    }
  }

  static const SumKernels<X, T>& sums() { return gather_kernels<X, T>().sum; }

  // Sums some rows of one code; returns how many of them are finite.
  template <class Kernel, class Out>
  int64_t sum(const Kernel& kernel, int64_t first, int64_t count, int64_t code, Out* out) const {
    const T* origin = head_.codes ? head_.codes->row(code) : nullptr;
    if (kernel(x_, sorted_.offsets(first), count, depth_, origin, out)) return count;
    // a spoiled row is among them: sum the others
    const Buffer<int64_t> finite(count + kOffsetsAhead);
    std::fill_n(finite.get(), count + kOffsetsAhead, 0);
    const Buffer<double> alone(depth_);
    int64_t kept = 0;
    for (int64_t p = first; p < first + count; ++p) {
      const int64_t* row = sorted_.offsets(p);
      if (sums().part(x_, row, 1, depth_, nullptr, alone.get())) finite[kept++] = *row;
    }
    kernel(x_, finite.get(), kept, depth_, origin, out);
    return kept;
  }

  // Adds up the partial sums of each code, in their order.
  void merge() {
    for (size_t i = 0; i < partials_.size();) {
      const Partial& first = partials_[i];
      double* total = totals_.get() + static_cast<int64_t>(i) * depth_;
      int64_t rows = first.rows;
      for (++i; i < partials_.size(); ++i) {
        if (partials_[i].code == kNoCode) continue;
        if (partials_[i].code != first.code) break;
        rows += partials_[i].rows;
        const double* part = totals_.get() + static_cast<int64_t>(i) * depth_;
        for (int64_t d = 0; d < depth_; ++d) total[d] += part[d];
      }
      if (first.code == kNoCode) continue;
      head_.counts[first.code] = static_cast<T>(rows);
      T* out = head_.sums + first.code * depth_;
      for (int64_t d = 0; d < depth_; ++d) out[d] = static_cast<T>(total[d]);
    }
  }

  const HeadStatistics<T>& head_;
  int64_t depth_;
  const X* x_;
  SortedRows sorted_;
  int64_t work_, tasks_;
  std::vector<Partial> partials_;
  Buffer<double> totals_;
};

}  // namespace

template <class X, class T>
void sum_sorted(const HeadStatistics<T>& head) {
  SortedSums<X, T>(head).run();
}

template void sum_sorted<float, float>(const HeadStatistics<float>&);
template void sum_sorted<c10::Half, float>(const HeadStatistics<float>&);
template void sum_sorted<c10::BFloat16, float>(const HeadStatistics<float>&);
template void sum_sorted<float, double>(const HeadStatistics<double>&);
template void sum_sorted<c10::Half, double>(const HeadStatistics<double>&);
template void sum_sorted<c10::BFloat16, double>(const HeadStatistics<double>&);
template void sum_sorted<double, double>(const HeadStatistics<double>&);

}  // namespace fastvq
