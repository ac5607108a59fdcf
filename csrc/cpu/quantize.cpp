// SPDX-License-Identifier: Apache-2.0
// quantize(x [B, M, H, D], codebook [H, K, D], indices [B, M, H]) -> quantized, loss, scale
// quantize_backward(grad, factor, x, codebook, indices) -> grad_x
// directional_backward(grad, factor, x, codebook, indices, gradient, to_codes) -> grad_x or pulls
#include "dense.h"
#include "directional_kernel.h"
#include "indices.h"
#include "kernels.h"
#include "parallel.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

namespace fastvq {
namespace {

// Fixed, so that the sum of the loss does not depend on the number of threads; a tile's rows.
constexpr int64_t kRowsPerTask = 128;
constexpr int kSums = 8;

struct Loss {
  double total;
  int64_t rows;
};

// Calls visit(run, element offsets of x, out and grad) for the runs of one task's rows.
template <class T, class Visit>
int64_t each_run(const Rows& x, const Rows& out, const Rows& grad, int64_t head, int64_t begin,
                 int64_t end, const DenseCodes<T>& codes, const Indices& indices,
                 const Visit& visit) {
  const T* code[kRowsPerTask];
  int64_t valid = 0;
  for (int64_t row = begin; row < end;) {
    const int64_t count = std::min(end - row, x.length - row % x.length);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t index = indices.at(row + i, head);
      code[i] = index < 0 ? nullptr : codes.row(index);
      valid += index >= 0;
    }
    visit(GatherRun<T>{count, x.depth, x.length_stride, x.depth_stride, out.length_stride,
                       out.depth_stride, grad.length_stride, grad.depth_stride, code},
          x.offset(row, head), out.offset(row, head), grad.offset(row, head));
    row += count;
  }
  return valid;
}

template <class X, class T>
Loss forward(const Rows& x, const Rows& codebook, const Indices& indices, const Rows& out) {
  const int64_t tasks = divide_up(x.count(), kRowsPerTask);
  std::vector<Loss> losses(static_cast<size_t>(tasks * x.heads));
  const X* source = static_cast<const X*>(x.data);
  X* target = static_cast<X*>(const_cast<void*>(out.data));
  for (int64_t head = 0; head < x.heads; ++head) {
    const DenseCodes<T> codes(codebook, head, x.depth);
    run_tasks(tasks, [&](int64_t task) {
      const int64_t begin = task * kRowsPerTask;
      double sums[kSums] = {};
      Loss& loss = losses[static_cast<size_t>(head * tasks + task)];
      loss.rows = each_run<T>(x, out, out, head, begin, std::min(x.count(), begin + kRowsPerTask),
                              codes, indices,
                              [&](const GatherRun<T>& run, int64_t from, int64_t to, int64_t) {
                                gather_kernels<X, T>().forward(run, source + from, target + to,
                                                               sums);
                              });
      loss.total = 0.0;
      for (double sum : sums) loss.total += sum;
    });
  }
  Loss sum{0.0, 0};
  for (const Loss& loss : losses) sum = {sum.total + loss.total, sum.rows + loss.rows};
  return sum;
}

// The same for all rows of all heads, on all threads.
template <class T, class Visit>
void each_run_of_all(const Rows& x, const Rows& out, const Rows& grad, const Rows& codebook,
                     const Indices& indices, const Visit& visit) {
  for (int64_t head = 0; head < x.heads; ++head) {
    const DenseCodes<T> codes(codebook, head, x.depth);
    run_tasks(divide_up(x.count(), kRowsPerTask), [&](int64_t task) {
      const int64_t begin = task * kRowsPerTask;
      each_run<T>(x, out, grad, head, begin, std::min(x.count(), begin + kRowsPerTask), codes,
                  indices, visit);
    });
  }
}

template <class X, class T>
void backward(const Rows& grad, T factor, const Rows& x, const Rows& codebook,
              const Indices& indices, const Rows& out) {
  const X* source = static_cast<const X*>(x.data);
  const X* slope = static_cast<const X*>(grad.data);
  X* target = static_cast<X*>(const_cast<void*>(out.data));
  each_run_of_all<T>(x, out, grad, codebook, indices,
                     [&](const GatherRun<T>& run, int64_t from, int64_t to, int64_t up) {
                       gather_kernels<X, T>().backward(run, source + from, slope + up, factor,
                                                       target + to);
                     });
}

template <class Estimator, class X, class T, class O>
void directional(const Rows& grad, double factor, const Rows& x, const Rows& codebook,
                 const Indices& indices, bool to_codes, const Rows& out) {
  const X* source = static_cast<const X*>(x.data);
  const X* slope = static_cast<const X*>(grad.data);
  O* target = static_cast<O*>(const_cast<void*>(out.data));
  each_run_of_all<T>(x, out, grad, codebook, indices,
                     [&](const GatherRun<T>& run, int64_t from, int64_t to, int64_t up) {
                       directional_run<Estimator, kRowsPerTask>(run, source + from, slope + up,
                                                                factor, to_codes, target + to);
                     });
}

bool computes_in_double(const Rows& x, const Rows& codebook) {
  return x.dtype == ScalarType::Double || codebook.dtype == ScalarType::Double;
}

// Calls f with null pointers of x's element type and of the computing type.
template <class F>
void with_types(const Rows& x, const Rows& codebook, const F& f) {
  with_element_type(x.dtype, [&](auto* element) {
    if constexpr (std::is_same_v<decltype(element), double*>) {
      f(element, element);
    } else if (computes_in_double(x, codebook)) {
      f(element, static_cast<double*>(nullptr));
    } else {
      f(element, static_cast<float*>(nullptr));
    }
  });
}

Tensor scalar(double value, bool wide) {
  Tensor t = torch::stable::empty({}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    *t.mutable_data_ptr<double>() = value;
  } else {
    *t.mutable_data_ptr<float>() = static_cast<float>(value);
  }
  return t;
}

std::tuple<Tensor, Tensor, Tensor> quantize(Tensor x, Tensor codebook, Tensor indices) {
  const Rows rows = rows_of(x, "x");
  const Rows codes = rows_of_codebook(codebook, rows);
  const Indices chosen(indices, rows);
  chosen.check_range(codes.length);
  Tensor quantized = torch::stable::empty_like(x);
  const Rows out = rows_of(quantized, "quantized");
  Loss loss{0.0, 0};
  with_types(rows, codes, [&](auto* element, auto* computing) {
    using X = std::remove_pointer_t<decltype(element)>;
    using T = std::remove_pointer_t<decltype(computing)>;
    loss = forward<X, T>(rows, codes, chosen, out);
  });
  const double elements = static_cast<double>(loss.rows) * static_cast<double>(rows.depth);
  const bool wide = computes_in_double(rows, codes);
  return {quantized, scalar(elements > 0 ? loss.total / elements : 0.0, wide),
          scalar(elements > 0 ? 2.0 / elements : 0.0, wide)};
}

Rows rows_of_grad(const Tensor& grad_quantized, const Tensor& x, const Rows& rows) {
  const Rows grad = rows_of(grad_quantized, "grad_quantized");
  check(grad.dtype == rows.dtype && shape_text(grad_quantized) == shape_text(x),
        "grad_quantized must be like x, ", torch::headeronly::toString(rows.dtype), " ",
        shape_text(x), ", got ", torch::headeronly::toString(grad.dtype), " ",
        shape_text(grad_quantized));
  return grad;
}

void check_factor(const Tensor& factor, bool wide) {
  check(factor.numel() == 1 &&
            factor.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
        "factor must be a 0-d ", wide ? "float64" : "float32", " tensor, got ",
        torch::headeronly::toString(factor.scalar_type()), " ", shape_text(factor));
}

Tensor quantize_backward(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook,
                         Tensor indices) {
  const Rows rows = rows_of(x, "x");
  const Rows codes = rows_of_codebook(codebook, rows);
  const Rows grad = rows_of_grad(grad_quantized, x, rows);
  const bool wide = computes_in_double(rows, codes);
  check_factor(factor, wide);
  const Indices chosen(indices, rows);
  chosen.check_range(codes.length);
  Tensor grad_x = torch::stable::empty_like(x);
  const Rows out = rows_of(grad_x, "grad_x");
  with_types(rows, codes, [&](auto* element, auto* computing) {
    using X = std::remove_pointer_t<decltype(element)>;
    using T = std::remove_pointer_t<decltype(computing)>;
    backward<X, T>(grad, *factor.const_data_ptr<T>(), rows, codes, chosen, out);
  });
  return grad_x;
}

Tensor directional_backward(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook,
                            Tensor indices, std::string gradient, bool to_codes) {
  const Rows rows = rows_of(x, "x");
  const Rows codes = rows_of_codebook(codebook, rows);
  const Rows grad = rows_of_grad(grad_quantized, x, rows);
  const bool wide = computes_in_double(rows, codes);
  check_factor(factor, wide);
  check(gradient == "diveq" || (gradient == "rotation" && !to_codes),
        "gradient must be rotation or diveq, and diveq for the codes, got ", gradient);
  const Indices chosen(indices, rows);
  chosen.check_range(codes.length);
  Tensor result =
      to_codes ? torch::stable::empty({rows.batch, rows.length, rows.heads, rows.depth},
                                      wide ? ScalarType::Double : ScalarType::Float)
               : torch::stable::empty_like(x);
  const Rows out = rows_of(result, "result");
  with_types(rows, codes, [&](auto* element, auto* computing) {
    using X = std::remove_pointer_t<decltype(element)>;
    using T = std::remove_pointer_t<decltype(computing)>;
    const double by = static_cast<double>(*factor.const_data_ptr<T>());
    if (gradient == "rotation") {
      directional<Rotation, X, T, X>(grad, by, rows, codes, chosen, false, out);
    } else if (to_codes) {
      directional<Diveq, X, T, T>(grad, by, rows, codes, chosen, true, out);
    } else {
      directional<Diveq, X, T, X>(grad, by, rows, codes, chosen, false, out);
    }
  });
  return result;
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) {
  m.impl("quantize", TORCH_BOX(&fastvq::quantize));
  m.impl("quantize_backward", TORCH_BOX(&fastvq::quantize_backward));
  m.impl("directional_backward", TORCH_BOX(&fastvq::directional_backward));
}
