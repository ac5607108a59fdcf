// SPDX-License-Identifier: Apache-2.0
// residual(x [B, M, D], codebooks [Q, K, D], levels [B, M]?) -> quantized [B, M, D],
// indices [B, M, Q], losses [Q], scales [Q]
// residual_backward(grad, factors [Q], x, codebooks, indices) -> grad_x, contiguous
#include "dense.h"
#include "indices.h"
#include "parallel.h"
#include "search.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

namespace fastvq {
namespace {

// Fixed, so that the sum of the loss does not depend on the number of threads.
constexpr int64_t kRowsPerTask = 128;
constexpr int kSums = 8;

// [B, M, D] as one head of rows.
Rows rows_of_vectors(const Tensor& t, const char* name) {
  check(t.dim() == 3, name, " must be [B, M, D], got ", shape_text(t));
  check_floating(t, name);
  return {t.const_data_ptr(), t.scalar_type(), t.size(0),   t.size(1), 1,
          t.size(2),          t.stride(0),     t.stride(1), 0,         t.stride(2)};
}

Rows rows_of_levels(const Tensor& t, const Rows& x) {
  check(t.dim() == 3 && t.size(0) > 0 && t.size(1) > 0 && t.size(2) == x.depth,
        "codebooks must be [Q, K, D] with Q, K > 0 and D = ", x.depth, ", got ", shape_text(t));
  check_floating(t, "codebooks");
  return {t.const_data_ptr(), t.scalar_type(), 1,           t.size(1),   t.size(0),
          t.size(2),          0,               t.stride(1), t.stride(0), t.stride(2)};
}

template <class T>
Rows rows_of_buffer(const T* data, const Rows& like) {
  constexpr ScalarType dtype = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;
  return {data, dtype, 1, like.count(), 1, like.depth, 0, like.depth, 0, 1};
}

template <class T>
void read_rows(const Rows& rows, int64_t first, int64_t count, T* out) {
  row_kernels<T>().read({&rows, 0, first, count, nullptr}, out, rows.depth);
}

template <class Task>
void for_each_part(int64_t count, const Task& task) {
  run_tasks(divide_up(count, kRowsPerTask), [&](int64_t part) {
    const int64_t first = part * kRowsPerTask;
    task(part, first, std::min(kRowsPerTask, count - first));
  });
}

// rest -= code and quantized += code in the rows that have one; their squares, added in eight sums.
template <class T>
double step(const DenseCodes<T>& codes, const int64_t* indices, int64_t levels, int64_t count,
            int64_t depth, T* rest, T* quantized) {
  double sums[kSums] = {};
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i * levels] < 0) continue;
    const T* code = codes.row(indices[i * levels]);
    T* left = rest + i * depth;
    T* sum = quantized + i * depth;
    for (int64_t d = 0; d < depth; ++d) {
      left[d] -= code[d];
      sum[d] += code[d];
    }
    for (int64_t d = 0; d < depth; ++d) {
      sums[d % kSums] += static_cast<double>(left[d]) * static_cast<double>(left[d]);
    }
  }
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

template <class T>
void quantize_levels(const Rows& x, const Rows& codebooks, const int64_t* taken, int64_t* indices,
                     T* quantized, T* losses, T* scales) {
  const int64_t rows = x.count(), levels = codebooks.heads;
  const Buffer<T> rest(rows * x.depth), distances(rows * levels);
  std::vector<double> parts(static_cast<size_t>(divide_up(rows, kRowsPerTask)));
  for_each_part(rows, [&](int64_t, int64_t first, int64_t count) {
    read_rows(x, first, count, rest.get() + first * x.depth);
    std::fill_n(quantized + first * x.depth, count * x.depth, T(0));
  });
  const Rows buffer = rows_of_buffer(rest.get(), x);
  for (int64_t q = 0; q < levels; ++q) {
    search_head<T>({buffer, 0}, {codebooks, q}, Metric::kEuclidean, true,
                   {indices + q, distances.get() + q, levels});
    const DenseCodes<T> codes(codebooks, q, x.depth);
    int64_t used = rows;
    if (taken) {
      used = 0;
      for (int64_t i = 0; i < rows; ++i) {
        if (taken[i] > q) ++used;
        else indices[i * levels + q] = -1;
      }
    }
    for_each_part(rows, [&](int64_t part, int64_t first, int64_t count) {
      parts[static_cast<size_t>(part)] =
          step(codes, indices + first * levels + q, levels, count, x.depth,
               rest.get() + first * x.depth, quantized + first * x.depth);
    });
    double total = 0.0;
    for (double part : parts) total += part;
    const double elements = static_cast<double>(used) * static_cast<double>(x.depth);
    losses[q] = static_cast<T>(elements > 0 ? total / elements : 0.0);
    scales[q] = static_cast<T>(elements > 0 ? 2.0 / elements : 0.0);
  }
}

template <class T>
void backward_levels(const Rows& grad, const T* factors, const Rows& x, const Rows& codebooks,
                     const Indices& indices, T* out) {
  const int64_t depth = x.depth;
  std::vector<DenseCodes<T>> codes;
  for (int64_t q = 0; q < codebooks.heads; ++q) codes.emplace_back(codebooks, q, depth);
  for_each_part(x.count(), [&](int64_t, int64_t first, int64_t count) {
    const Buffer<T> rest(count * depth);
    read_rows(x, first, count, rest.get());
    read_rows(grad, first, count, out + first * depth);
    for (int64_t i = 0; i < count; ++i) {
      T* left = rest.get() + i * depth;
      T* slope = out + (first + i) * depth;
      for (int64_t q = 0; q < codebooks.heads; ++q) {
        const int64_t index = indices.at(first + i, q);
        if (index < 0) continue;
        const T* code = codes[static_cast<size_t>(q)].row(index);
        for (int64_t d = 0; d < depth; ++d) {
          left[d] -= code[d];
          slope[d] += factors[q] * left[d];
        }
      }
    }
  });
}

bool computes_in_double(const Rows& x, const Rows& codebooks) {
  return x.dtype == ScalarType::Double || codebooks.dtype == ScalarType::Double;
}

// Calls f with a null pointer of the computing type.
template <class F>
void with_computing_type(const Rows& x, const Rows& codebooks, const F& f) {
  if (computes_in_double(x, codebooks)) {
    f(static_cast<double*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

ScalarType computing_type(const Rows& x, const Rows& codebooks) {
  return computes_in_double(x, codebooks) ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual(Tensor x, Tensor codebooks,
                                                    std::optional<Tensor> levels) {
  const Rows rows = rows_of_vectors(x, "x");
  const Rows codes = rows_of_levels(codebooks, rows);
  std::vector<int64_t> taken;
  if (levels) {
    check(levels->scalar_type() == ScalarType::Long && levels->dim() == 2 &&
              levels->size(0) == rows.batch && levels->size(1) == rows.length,
          "levels must be int64 [", rows.batch, ", ", rows.length, "], got ",
          torch::headeronly::toString(levels->scalar_type()), " ", shape_text(*levels));
    const int64_t* data = levels->const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows.count(); ++i) {
      taken.push_back(data[i / rows.length * levels->stride(0) +
                           i % rows.length * levels->stride(1)]);
    }
  }
  const ScalarType dtype = computing_type(rows, codes);
  const int64_t shape[] = {rows.batch, rows.length, rows.depth};
  const int64_t index_shape[] = {rows.batch, rows.length, codes.heads};
  const int64_t loss_shape[] = {codes.heads};
  Tensor quantized = torch::stable::empty({shape, 3}, dtype);
  Tensor indices = torch::stable::empty({index_shape, 3}, ScalarType::Long);
  Tensor losses = torch::stable::empty({loss_shape, 1}, dtype);
  Tensor scales = torch::stable::empty({loss_shape, 1}, dtype);
  with_computing_type(rows, codes, [&](auto* computing) {
    using T = std::remove_pointer_t<decltype(computing)>;
    quantize_levels<T>(rows, codes, levels ? taken.data() : nullptr,
                       indices.mutable_data_ptr<int64_t>(), quantized.mutable_data_ptr<T>(),
                       losses.mutable_data_ptr<T>(), scales.mutable_data_ptr<T>());
  });
  return {quantized, indices, losses, scales};
}

Tensor residual_backward(Tensor grad_quantized, Tensor factors, Tensor x, Tensor codebooks,
                         Tensor indices) {
  const Rows rows = rows_of_vectors(x, "x");
  const Rows codes = rows_of_levels(codebooks, rows);
  const Rows grad = rows_of_vectors(grad_quantized, "grad_quantized");
  check(shape_text(grad_quantized) == shape_text(x), "grad_quantized must be like x, ",
        shape_text(x), ", got ", shape_text(grad_quantized));
  const ScalarType dtype = computing_type(rows, codes);
  check(factors.dim() == 1 && factors.size(0) == codes.heads && factors.stride(0) == 1 &&
            factors.scalar_type() == dtype,
        "factors must be contiguous ", torch::headeronly::toString(dtype), " [", codes.heads,
        "], got ", torch::headeronly::toString(factors.scalar_type()), " ", shape_text(factors));
  Rows of_levels = rows;
  of_levels.heads = codes.heads;
  const Indices chosen(indices, of_levels);
  chosen.check_range(codes.length);
  const int64_t shape[] = {rows.batch, rows.length, rows.depth};
  Tensor out = torch::stable::empty({shape, 3}, dtype);
  with_computing_type(rows, codes, [&](auto* computing) {
    using T = std::remove_pointer_t<decltype(computing)>;
    backward_levels<T>(grad, factors.const_data_ptr<T>(), rows, codes, chosen,
                       out.mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) {
  m.impl("residual", TORCH_BOX(&fastvq::residual));
  m.impl("residual_backward", TORCH_BOX(&fastvq::residual_backward));
}
