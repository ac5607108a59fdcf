// SPDX-License-Identifier: Apache-2.0
// nearest(x [B, M, H, D], codebook [H, K, D]) -> indices int64 [B, M, H], distances [B, M, H]
#include "search.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

namespace fastvq {
namespace {

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
      search_head<double>({rows, head}, {codes, head}, kind, exact,
                          {index + head, distance + head, rows.heads});
    } else {
      float* distance = distances.mutable_data_ptr<float>();
      search_head<float>({rows, head}, {codes, head}, kind, exact,
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
