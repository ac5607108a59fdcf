// SPDX-License-Identifier: Apache-2.0
// nearest(x [B, M, H, D], codebook [H, K, D]) -> indices int64 [B, M, H], distances [B, M, H]
#include "search.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace fastvq {
namespace {

// Up to this many rows, packing the codebook costs more than comparing everything in float64.
constexpr int64_t kFewRows = 16;
// Below this many channels codes lie too close for bfloat16 to tell many apart.
constexpr int64_t kCoarseDepth = 4;

Metric parse_metric(const std::string& name) {
  if (name == "euclidean") return Metric::kEuclidean;
  if (name == "cosine") return Metric::kCosine;
  check(name == "dot", "metric must be 'euclidean', 'cosine' or 'dot', got '", name, "'");
  return Metric::kDot;
}

bool parse_exact(const std::string& name) {
  check(name == "exact" || name == "fast", "precision must be 'exact' or 'fast', got '",
                  name, "'");
  return name == "exact";
}

void search_certified(const Scan<float>& scan, bool exact) {
  const Kernels& table = kernels();
  const int64_t rows = scan.x().count();
  if (table.coarse == nullptr || scan.codes().depth() < kCoarseDepth) {
    CertifiedSearch(scan, table.fine, exact).run(rows, nullptr);
    return;
  }
  const std::vector<int64_t> left = CertifiedSearch(scan, *table.coarse, exact).run(rows, nullptr);
  if (left.empty()) return;
  CertifiedSearch(scan, table.fine, exact).run(static_cast<int64_t>(left.size()), left.data());
}

template <class T>
void search_head(const Rows& x, const Rows& codebook, int64_t head, Metric metric, bool exact,
                 Answers<T> answers) {
  Codes<T> codes(codebook, head, metric);
  if (codes.first() < 0) {
    for (int64_t r = 0; r < x.count(); ++r) {
      answers.indices[r * answers.heads] = 0;
      answers.distances[r * answers.heads] = std::numeric_limits<T>::quiet_NaN();
    }
    return;
  }
  const Scan<T> scan(x, head, codes, answers);
  if constexpr (std::is_same_v<T, float>) {
    if (x.count() > kFewRows) {
      codes.drop_duplicates();
      return search_certified(scan, exact);
    }
  }
  scan.run(x.count(), nullptr);
}

std::tuple<Tensor, Tensor> nearest(Tensor x, Tensor codebook, std::string metric,
                                   std::string precision) {
  const Rows rows = rows_of(x, "x");
  const Rows codes = rows_of_codebook(codebook, rows);
  const Metric kind = parse_metric(metric);
  const bool exact = parse_exact(precision);
  const bool wide = rows.dtype == ScalarType::Double || codes.dtype == ScalarType::Double;
  const int64_t shape[] = {rows.batch, rows.length, rows.heads};
  Tensor indices = torch::stable::empty({shape, 3}, ScalarType::Long);
  Tensor distances =
      torch::stable::empty({shape, 3}, wide ? ScalarType::Double : ScalarType::Float);
  if (rows.count() == 0) return {indices, distances};
  int64_t* index = indices.mutable_data_ptr<int64_t>();
  for (int64_t head = 0; head < rows.heads; ++head) {
    if (wide) {
      double* distance = distances.mutable_data_ptr<double>();
      search_head<double>(rows, codes, head, kind, exact,
                          {index + head, distance + head, rows.heads});
    } else {
      float* distance = distances.mutable_data_ptr<float>();
      search_head<float>(rows, codes, head, kind, exact,
                         {index + head, distance + head, rows.heads});
    }
  }
  return {indices, distances};
}

// What the searches of this process came to, in rows: scored, certified by the scores, left to a
// finer pass, compared with every code in float64.
Tensor search_counts() {
  const SearchCounts& counts = search_totals();
  const int64_t shape[] = {4};
  Tensor result = torch::stable::empty({shape, 1}, ScalarType::Long);
  int64_t* out = result.mutable_data_ptr<int64_t>();
  out[0] = counts.scored;
  out[1] = counts.certified;
  out[2] = counts.left;
  out[3] = counts.scanned;
  return result;
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) { m.impl("nearest", TORCH_BOX(&fastvq::nearest)); }
STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CompositeExplicitAutograd, m) {
  m.impl("search_counts", TORCH_BOX(&fastvq::search_counts));
}
