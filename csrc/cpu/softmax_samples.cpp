// SPDX-License-Identifier: Apache-2.0
// softmax_samples: x [H, N, D], codebook [H, K, D], all contiguous.
#include "pairs.h"

#include <torch/csrc/stable/library.h>

namespace fastvq {
namespace {

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
  m.impl("softmax_samples", TORCH_BOX(&fastvq::softmax_samples));
}
