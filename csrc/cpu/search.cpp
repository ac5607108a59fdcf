// SPDX-License-Identifier: Apache-2.0
#include "search.h"

#include <limits>
#include <vector>

namespace fastvq {
namespace {

// Up to this many rows, packing the codebook costs more than comparing everything in float64.
constexpr int64_t kFewRows = 16;
// From here on the bound on the rounding of so long a float32 sum proves nothing.
constexpr int64_t kBoundlessDepth = 1 << 22;

void search_certified(const Scan<float>& scan, bool exact) {
  const Kernels& table = kernels();
  const int64_t rows = scan.x().count();
  if (table.coarse == nullptr || scan.codes().depth() < table.coarse_depth) {
    CertifiedSearch(scan, table.fine, exact).run(rows, nullptr);
    return;
  }
  const std::vector<int64_t> left = CertifiedSearch(scan, *table.coarse, exact).run(rows, nullptr);
  if (left.empty()) return;
  CertifiedSearch(scan, table.fine, exact).run(static_cast<int64_t>(left.size()), left.data());
}

}  // namespace

template <class T>
void search_head(Head x, Head codebook, Metric metric, bool exact, Answers<T> answers) {
  Codes<T> codes(codebook.rows, codebook.head, metric);
  if (codes.first() < 0) {
    for (int64_t r = 0; r < x.rows.count(); ++r) {
      answers.indices[r * answers.heads] = 0;
      answers.distances[r * answers.heads] = std::numeric_limits<T>::quiet_NaN();
    }
    return;
  }
  const Scan<T> scan(x.rows, x.head, codes, answers);
  if constexpr (std::is_same_v<T, float>) {
    if (x.rows.count() > kFewRows && codes.depth() < kBoundlessDepth) {
      codes.drop_duplicates();
      return search_certified(scan, exact);
    }
  }
  scan.run(x.rows.count(), nullptr);
}

template void search_head<float>(Head, Head, Metric, bool, Answers<float>);
template void search_head<double>(Head, Head, Metric, bool, Answers<double>);

}  // namespace fastvq
