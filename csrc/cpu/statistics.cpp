// SPDX-License-Identifier: Apache-2.0
// statistics(x [B, M, H, D], indices [B, M, H], K, codebook [H, K, D]?) -> counts [H, K],
// sums [H, K, D]
#include "head_statistics.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

namespace fastvq {
namespace {

template <class X, class T>
void fill(const Rows& x, const Indices& indices, int64_t num_codes, const Rows* codebook,
          Tensor& counts, Tensor& sums) {
  T* count = counts.mutable_data_ptr<T>();
  T* sum = sums.mutable_data_ptr<T>();
  for (int64_t head = 0; head < x.heads; ++head) {
    std::optional<DenseCodes<T>> codes;
    if (codebook) codes.emplace(*codebook, head, x.depth);
    const HeadStatistics<T> part{x,         head,
                                 indices,   codes ? &*codes : nullptr,
                                 num_codes, count + head * num_codes,
                                 sum + head * num_codes * x.depth};
    if (x.depth_stride == 1) {
      sum_sorted<X>(part);
    } else {
      sum_columns(part);
    }
  }
}

std::tuple<Tensor, Tensor> statistics(Tensor x, Tensor indices, int64_t num_codes,
                                      std::optional<Tensor> codebook) {
  const Rows rows = rows_of(x, "x");
  check(num_codes > 0, "num_codes must be positive, got ", num_codes);
  std::optional<Rows> codes;
  if (codebook) {
    codes = rows_of_codebook(*codebook, rows);
    check(codes->length == num_codes, "codebook must hold num_codes = ", num_codes, " codes, got ",
          shape_text(*codebook));
  }
  const Indices chosen(indices, rows);
  chosen.check_range(num_codes);
  const bool wide =
      rows.dtype == ScalarType::Double || (codes && codes->dtype == ScalarType::Double);
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  const int64_t shape[] = {rows.heads, num_codes, rows.depth};
  Tensor counts = torch::stable::empty({shape, 2}, dtype);
  Tensor sums = torch::stable::empty({shape, 3}, dtype);
  with_element_type(rows.dtype, [&](auto* element) {
    using X = std::remove_pointer_t<decltype(element)>;
    const Rows* origins = codes ? &*codes : nullptr;
    if constexpr (std::is_same_v<X, double>) {
      fill<X, double>(rows, chosen, num_codes, origins, counts, sums);
    } else if (wide) {
      fill<X, double>(rows, chosen, num_codes, origins, counts, sums);
    } else {
      fill<X, float>(rows, chosen, num_codes, origins, counts, sums);
    }
  });
  return {counts, sums};
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) {
  m.impl("statistics", TORCH_BOX(&fastvq::statistics));
}
