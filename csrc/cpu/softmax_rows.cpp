// SPDX-License-Identifier: Apache-2.0
// softmax_rows: x [H, N, D], codebook [H, K, D], all contiguous.
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

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CPU, m) {
  m.impl("softmax_rows", TORCH_BOX(&fastvq::softmax_rows));
}
