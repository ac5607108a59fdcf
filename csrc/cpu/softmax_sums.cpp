// SPDX-License-Identifier: Apache-2.0
// softmax_sums: x [H, N, D], codebook [H, K, D], all contiguous.
#include "pairs.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace fastvq {
namespace {

// What softmax_sums is given of one head, and where its results go.
template <class T>
struct SumArguments {
  int64_t depth, channels, padded;  // channels of the values, and with the lanes filled
  bool by_code;
  const T *maximum, *log_sum, *log_factor, *factor, *weight;
  const T *bias, *code_factor;
  const T *direction, *axes;  // of the owners, and of the others in panels; or null
  const T* values;            // as blocks of panels, or null
  T *weights, *totals;
};

template <class T>
struct SumTask : SumArguments<T> {
  int64_t first, last;
  Buffer<T> products{kTogether * kBlock}, part{kTogether * this->padded};
  Buffer<double> sums{kOwners}, spreads{kOwners * this->padded};

  SumTask(int64_t first, int64_t last, const SumArguments<T>& arguments)
      : SumArguments<T>(arguments), first(first), last(last) {
    std::fill_n(sums.get(), kOwners, 0.0);
    std::fill_n(spreads.get(), kOwners * this->padded, 0.0);
  }

  SoftmaxTerms<T> terms(int64_t i, int64_t j) const {
    const int64_t row = this->by_code ? j : i, code = this->by_code ? i : j;
    return {this->by_code,
            this->maximum + row,
            this->log_sum + row,
            this->log_factor + row,
            this->factor + row,
            this->weight + row,
            this->bias + code,
            this->code_factor == nullptr ? nullptr : this->code_factor + code,
            nullptr};
  }

  void block(int64_t i, int64_t count, int64_t j, T* logits) {
    const SoftmaxKernels<T>& kernel = softmax_kernels<T>();
    if (this->direction != nullptr) {
      const Four<T> four(this->direction, i, last, this->depth);
      kernel.products(four.rows, this->axes + j * this->depth, kBlock / kernel.panel, this->depth,
                      true, T(1), products.get(), kBlock);
    }
    for (int64_t r = 0; r < count; ++r) {
      SoftmaxTerms<T> of = terms(i + r, j);
      if (this->direction != nullptr) of.direction = products.get() + r * kBlock;
      sums[i + r - first] += static_cast<double>(kernel.weigh(logits + r * kBlock, kBlock, of));
    }
    if (this->values == nullptr) return;
    kernel.spread(logits, kBlock, this->values + j * this->padded, kBlock, this->padded,
                  part.get());
    double* total = spreads.get() + (i - first) * this->padded;
    for (int64_t c = 0; c < count * this->padded; ++c) total[c] += static_cast<double>(part[c]);
  }

  void finish() {
    for (int64_t i = first; i < last; ++i) {
      this->weights[i] = static_cast<T>(sums[i - first]);
      const double* total = spreads.get() + (i - first) * this->padded;
      T* out = this->totals + i * this->channels;
      for (int64_t c = 0; c < this->channels; ++c) out[c] = static_cast<T>(total[c]);
    }
  }
};

struct SumTensors {
  Tensor x, codebook, bias, maximum, log_sum, factors;
  std::optional<Tensor> code_factor, direction, axes, values;
  Tensor weights, totals;
};

template <class T>
void fill_sums(const Sizes& n, const SumTensors& in, int64_t channels, bool by_code, bool dot,
               double scale) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t owner_count = by_code ? n.codes : n.rows;
  const int64_t other_count = by_code ? n.rows : n.codes;
  const T* x = elements<T>(in.x, "x", {n.heads, n.rows, n.depth});
  const T* codebook = elements<T>(in.codebook, "codebook", {n.heads, n.codes, n.depth});
  const T* bias = elements<T>(in.bias, "bias", {n.heads, n.codes});
  const T* maximum = elements<T>(in.maximum, "maximum", {n.heads, n.rows});
  const T* log_sum = elements<T>(in.log_sum, "log_sum", {n.heads, n.rows});
  const T* factors = elements<T>(in.factors, "factors", {3, n.heads, n.rows});
  const T* code_factor = elements<T>(in.code_factor, "code_factor", {n.heads, n.codes});
  const T* direction = elements<T>(in.direction, "direction", {n.heads, n.rows, n.depth});
  const T* axes = elements<T>(in.axes, "axes", {n.heads, n.codes, n.depth});
  const T* values = elements<T>(in.values, "values", {n.heads, other_count, channels});
  check(in.direction.has_value() == in.axes.has_value(), "direction and axes must come together");
  const int64_t width = round_up(channels, softmax_kernels<T>().width);
  for (int64_t h = 0; h < n.heads; ++h) {
    const int64_t row = h * n.rows, code = h * n.codes;
    // what is on the lanes must fill whole blocks
    const auto fill = [&](const T* from, bool of_rows, T rest) {
      const bool lanes = from != nullptr && of_rows == by_code;
      return lanes ? padded(from, other_count, 1, 1, rest) : Buffer<T>();
    };
    const auto pick = [](const Buffer<T>& filled, const T* from) {
      return filled.get() != nullptr ? filled.get() : from;
    };
    const T* factor[3];
    Buffer<T> filled[3];
    for (int64_t f = 0; f < 3; ++f) {
      const T* from = factors + f * n.heads * n.rows + row;
      filled[f] = fill(from, true, 0);
      factor[f] = pick(filled[f], from);
    }
    const T* t = code_factor == nullptr ? nullptr : code_factor + code;
    const Buffer<T> top = fill(maximum + row, true, infinity), low = fill(log_sum + row, true, 0);
    const Buffer<T> rest = fill(bias + code, false, -infinity), every = fill(t, false, 0);
    const T* of_rows = direction == nullptr ? nullptr : direction + row * n.depth;
    const T* of_codes = axes == nullptr ? nullptr : axes + code * n.depth;
    const T* turned = by_code ? of_rows : of_codes;
    const Buffer<T> panels =
        turned == nullptr ? Buffer<T>() : packed(turned, other_count, n.depth);
    const Buffer<T> wide = values == nullptr
                               ? Buffer<T>()
                               : blocked(values + h * other_count * channels, other_count,
                                         channels, width);
    const SumArguments<T> arguments{n.depth,
                                    channels,
                                    values == nullptr ? 0 : width,
                                    by_code,
                                    pick(top, maximum + row),
                                    pick(low, log_sum + row),
                                    factor[0],
                                    factor[1],
                                    factor[2],
                                    pick(rest, bias + code),
                                    pick(every, t),
                                    by_code ? of_codes : of_rows,
                                    panels.get(),
                                    wide.get(),
                                    in.weights.template mutable_data_ptr<T>() + h * owner_count,
                                    in.totals.template mutable_data_ptr<T>() +
                                        h * owner_count * channels};
    const T* rows = x + row * n.depth;
    const T* codes = codebook + code * n.depth;
    for_logits<T>(by_code ? codes : rows, owner_count, by_code ? rows : codes, other_count, n.depth,
                  dot, static_cast<T>(dot ? scale : -scale), [&](int64_t first, int64_t last) {
                    return SumTask<T>(first, last, arguments);
                  });
  }
}

std::tuple<Tensor, Tensor> softmax_sums(Tensor x, Tensor codebook, Tensor bias, Tensor maximum,
                                        Tensor log_sum, Tensor factors,
                                        std::optional<Tensor> code_factor,
                                        std::optional<Tensor> direction, std::optional<Tensor> axes,
                                        std::optional<Tensor> values, bool by_code,
                                        std::string metric, double scale) {
  const Sizes n = sizes_of(x, codebook);
  check(!values || values->dim() == 3, "values must be [H, N, C] or [H, K, C]");
  const int64_t channels = values ? values->size(2) : 0;
  const int64_t shape[] = {n.heads, by_code ? n.codes : n.rows, channels};
  const ScalarType dtype = x.scalar_type();
  Tensor weights = torch::stable::empty({shape, 2}, dtype);
  Tensor totals = torch::stable::empty({shape, 3}, dtype);
  const SumTensors all{x,           codebook,  bias, maximum, log_sum, factors,
                       code_factor, direction, axes, values,  weights, totals};
  const bool dot = is_dot(metric);
  if (dtype == ScalarType::Double) {
    fill_sums<double>(n, all, channels, by_code, dot, scale);
  } else {
    fill_sums<float>(n, all, channels, by_code, dot, scale);
  }
  return {weights, totals};
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) {
  m.impl("softmax_sums", TORCH_BOX(&fastvq::softmax_sums));
}
