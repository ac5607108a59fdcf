// SPDX-License-Identifier: Apache-2.0
// softmax_rows, softmax_sums, softmax_samples: x [H, N, D], codebook [H, K, D], all contiguous.
//
// One side owns the results and is cut into tasks; each task goes once over the other side, a block
// at a time, which all of its owners use while it is in the cache. An owner's sums are its own and
// in the order of the blocks, whatever the tasks.
#include "pairs.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace fastvq {
namespace {

template <class T>
struct RowResults {
  T *maximum, *log_sum, *entropy, *surprisal;
  const int64_t* indices;
};

template <class T>
struct RowTask {
  int64_t first, last;
  const T* bias;
  RowResults<T> out;
  Buffer<SoftmaxRow<T>> rows{kOwners};
  Buffer<T> chosen{kOwners};

  RowTask(int64_t first, int64_t last, const T* bias, const RowResults<T>& out)
      : first(first), last(last), bias(bias), out(out) {
    for (int64_t i = 0; i < last - first; ++i) {
      rows[i] = {-std::numeric_limits<T>::infinity(), 0.0, 0.0};
      chosen[i] = 0;
    }
  }

  void block(int64_t i, int64_t count, int64_t j, T* logits) {
    for (int64_t r = 0; r < count; ++r, logits += kBlock) {
      softmax_kernels<T>().absorb(logits, bias + j, kBlock, rows[i + r - first]);
      if (out.indices == nullptr) continue;
      const int64_t index = out.indices[i + r] - j;
      if (index >= 0 && index < kBlock) chosen[i + r - first] = logits[index];
    }
  }

  void finish() {
    for (int64_t i = first; i < last; ++i) {
      const SoftmaxRow<T>& row = rows[i - first];
      const double log_sum = std::log(row.sum);
      out.maximum[i] = row.maximum;
      out.log_sum[i] = static_cast<T>(log_sum);
      out.entropy[i] = static_cast<T>(log_sum - row.moment / row.sum);
      const double fall = static_cast<double>(row.maximum) - chosen[i - first];
      out.surprisal[i] = out.indices == nullptr ? 0 : static_cast<T>(log_sum + fall);
    }
  }
};

template <class T>
void fill_rows(const Sizes& n, const Tensor& x, const Tensor& codebook, const Tensor& bias,
               const std::optional<Tensor>& indices, bool dot, double scale, Tensor (&out)[4]) {
  const T* rows = elements<T>(x, "x", {n.heads, n.rows, n.depth});
  const T* codes = elements<T>(codebook, "codebook", {n.heads, n.codes, n.depth});
  const T* biases = elements<T>(bias, "bias", {n.heads, n.codes});
  const int64_t* index = elements<int64_t>(indices, "indices", {n.heads, n.rows});
  for (int64_t h = 0; h < n.heads; ++h) {
    const int64_t at = h * n.rows;
    const RowResults<T> to{out[0].mutable_data_ptr<T>() + at, out[1].mutable_data_ptr<T>() + at,
                           out[2].mutable_data_ptr<T>() + at, out[3].mutable_data_ptr<T>() + at,
                           index == nullptr ? nullptr : index + at};
    const Buffer<T> rest =
        padded(biases + h * n.codes, n.codes, 1, 1, -std::numeric_limits<T>::infinity());
    for_logits<T>(rows + at * n.depth, n.rows, codes + h * n.codes * n.depth, n.codes, n.depth, dot,
                  static_cast<T>(dot ? scale : -scale), [&](int64_t first, int64_t last) {
                    return RowTask<T>(first, last, rest.get(), to);
                  });
  }
}

bool is_dot(const std::string& metric) {
  check(metric == "dot" || metric == "euclidean", "metric must be euclidean or dot, got '", metric,
        "'");
  return metric == "dot";
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_rows(Tensor x, Tensor codebook, Tensor bias,
                                                        std::optional<Tensor> indices,
                                                        std::string metric, double scale) {
  const Sizes n = sizes_of(x, codebook);
  const int64_t shape[] = {n.heads, n.rows};
  const auto make = [&] { return torch::stable::empty({shape, 2}, x.scalar_type()); };
  Tensor out[] = {make(), make(), make(), make()};
  const bool dot = is_dot(metric);
  if (x.scalar_type() == ScalarType::Double) {
    fill_rows<double>(n, x, codebook, bias, indices, dot, scale, out);
  } else {
    fill_rows<float>(n, x, codebook, bias, indices, dot, scale, out);
  }
  return {out[0], out[1], out[2], out[3]};
}

// What softmax_sums is given of one head, and where its results go.
template <class T>
struct SumArguments {
  int64_t depth, channels, padded;  // channels of the values, and with the lanes filled
  bool by_code;
  const T *maximum, *log_sum, *log_factor, *factor, *weight;
  const T *bias, *code_factor;
  const T *direction, *axes;  // of the owners, and of the others in panels; or null
  const T* values;            // [others, padded] or null
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
    const Buffer<T> wide =
        values == nullptr
            ? Buffer<T>()
            : padded(values + h * other_count * channels, other_count, channels, width);
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

template <class T>
struct SampleTask {
  int64_t first, last;
  const T* bias;
  const int64_t *keys, *other_keys;
  int64_t* out;
  Buffer<T> best{kOwners};

  SampleTask(int64_t first, int64_t last, const T* bias, const int64_t* keys,
             const int64_t* other_keys, int64_t* out)
      : first(first), last(last), bias(bias), keys(keys), other_keys(other_keys), out(out) {
    std::fill_n(best.get(), kOwners, -std::numeric_limits<T>::infinity());
    std::fill(out + first, out + last, 0);
  }

  void block(int64_t i, int64_t count, int64_t j, T* logits) {
    for (int64_t r = 0; r < count; ++r, logits += kBlock) {
      const T top = softmax_kernels<T>().perturb(
          logits, bias + j, kBlock, static_cast<uint32_t>(j), static_cast<uint32_t>(keys[i + r]),
          static_cast<uint32_t>(other_keys[i + r]));
      if (!(top > best[i + r - first])) continue;
      best[i + r - first] = top;
      out[i + r] = j + (std::find(logits, logits + kBlock, top) - logits);
    }
  }

  void finish() {}
};

template <class T>
void fill_samples(const Sizes& n, const Tensor& x, const Tensor& codebook, const Tensor& bias,
                  const Tensor& keys, bool dot, double scale, Tensor& out) {
  const T* rows = elements<T>(x, "x", {n.heads, n.rows, n.depth});
  const T* codes = elements<T>(codebook, "codebook", {n.heads, n.codes, n.depth});
  const T* biases = elements<T>(bias, "bias", {n.heads, n.codes});
  const int64_t* key = elements<int64_t>(keys, "keys", {2, n.heads, n.rows});
  for (int64_t h = 0; h < n.heads; ++h) {
    const int64_t at = h * n.rows;
    const Buffer<T> rest =
        padded(biases + h * n.codes, n.codes, 1, 1, -std::numeric_limits<T>::infinity());
    for_logits<T>(rows + at * n.depth, n.rows, codes + h * n.codes * n.depth, n.codes, n.depth, dot,
                  static_cast<T>(dot ? scale : -scale), [&](int64_t first, int64_t last) {
                    return SampleTask<T>(first, last, rest.get(), key + at,
                                         key + n.heads * n.rows + at,
                                         out.mutable_data_ptr<int64_t>() + at);
                  });
  }
}

Tensor softmax_samples(Tensor x, Tensor codebook, Tensor bias, Tensor keys, std::string metric,
                       double scale) {
  const Sizes n = sizes_of(x, codebook);
  const int64_t shape[] = {n.heads, n.rows};
  Tensor out = torch::stable::empty({shape, 2}, ScalarType::Long);
  const bool dot = is_dot(metric);
  if (x.scalar_type() == ScalarType::Double) {
    fill_samples<double>(n, x, codebook, bias, keys, dot, scale, out);
  } else {
    fill_samples<float>(n, x, codebook, bias, keys, dot, scale, out);
  }
  return out;
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) {
  m.impl("softmax_rows", TORCH_BOX(&fastvq::softmax_rows));
  m.impl("softmax_sums", TORCH_BOX(&fastvq::softmax_sums));
  m.impl("softmax_samples", TORCH_BOX(&fastvq::softmax_samples));
}
