// SPDX-License-Identifier: Apache-2.0
// quantize(x [B, M, H, D], codebook [H, K, D], indices [B, M, H]) -> quantized, loss, scale
// quantize_backward(grad, factor, x, codebook, indices) -> grad_x
//
// Not yet measured on a GPU. Why it ships: both backends move the same bytes, so on paper it ties
// with the Triton kernels where those are what takes the time; outside of CUDA graphs two launches
// from here cost some 10 us of the host, two of Triton's from Python several times that, which is
// all the time of a call of up to some 10^5 vectors. With it, the native backend trains by itself.
//
// Deterministic: a block sums the squares of its own rows in a fixed tree, and one block the sums
// of the blocks. A row whose index is out of range is NaN, as is the loss: a check would have to
// wait for the device.
#include "device.h"
#include "view.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>
#include <tuple>

namespace fastvq {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsEach = 4;  // rows a thread

// Threads of a block lie along the channels, or along the rows where those are next to each other.
struct Layout {
  uint32_t rows, depth, lanes, blocks;

  __device__ uint32_t row(uint32_t step) const {
    return (blockIdx.x * kRowsEach + step) * (kThreads / lanes) + threadIdx.x / lanes;
  }
  __device__ uint32_t lane() const { return threadIdx.x % lanes; }
};

Layout layout_of(const Rows& x) {
  const auto depth = static_cast<uint32_t>(x.depth);
  const uint32_t lanes =
      x.depth_stride == 1 ? std::min<uint32_t>(kThreads, std::bit_ceil(depth)) : 1;
  const int64_t rows = x.depth > 0 ? x.count() : 0;
  return {static_cast<uint32_t>(rows), depth, lanes,
          static_cast<uint32_t>(divide_up(rows, kRowsEach * int64_t{kThreads} / lanes))};
}

template <class X, class T>
struct Lookup {
  Layout layout;
  const X* x;
  Strides x_strides;
  const T* codes;
  Strides code_strides;
  int64_t num_codes;
  Chosen chosen;
  X* out;
  Strides out_strides;
};

struct Loss {
  double squares;
  int64_t rows;
};

template <class X, class T>
struct Forward {
  Lookup<X, T> at;
  Loss* losses;  // [H, blocks]
};

template <class X, class T>
struct Backward {
  Lookup<X, T> at;
  const X* grad;
  Strides grad_strides;
  const T* factor;
};

template <class T>
struct Total {
  const Loss* losses;
  int64_t count;
  double depth;
  T *loss, *scale;
};

// The rows of one thread and their codes, looked up together so that their loads overlap.
template <class X, class T>
struct Batch {
  const Lookup<X, T>& at;
  bool live[kRowsEach], coded[kRowsEach];
  uint32_t row[kRowsEach];
  const T* code[kRowsEach];  // null where the index is out of range

  __device__ explicit Batch(const Lookup<X, T>& lookup) : at(lookup) {
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      row[i] = at.layout.row(i);
      live[i] = row[i] < at.layout.rows;
      const int64_t index = live[i] ? at.chosen.at(row[i], blockIdx.y) : -1;
      coded[i] = index != -1;
      code[i] = index < 0 || index >= at.num_codes
                    ? nullptr
                    : at.codes + at.code_strides.offset(static_cast<uint32_t>(index), blockIdx.y);
    }
  }

  // Calls visit(i, code, x, element of the result) for one channel of each row that there is.
  template <class Visit>
  __device__ void channel(uint32_t d, const Visit& visit) const {
    T value[kRowsEach], x[kRowsEach];
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      x[i] = coded[i] ? widened<T>(at.x[at.x_strides.offset(row[i], blockIdx.y) +
                                        d * at.x_strides.depth])
                      : T(0);
      value[i] = code[i] != nullptr ? code[i][d * at.code_strides.depth]
                 : coded[i]         ? kNan<T>
                                    : T(0);
    }
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      if (!live[i]) continue;
      visit(i, value[i], x[i],
            at.out[at.out_strides.offset(row[i], blockIdx.y) + d * at.out_strides.depth]);
    }
  }
};

// The sums of a block, in its first thread.
__device__ Loss block_sum(Loss mine) {
  __shared__ Loss sums[kThreads];
  sums[threadIdx.x] = mine;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      sums[threadIdx.x].squares += sums[threadIdx.x + half].squares;
      sums[threadIdx.x].rows += sums[threadIdx.x + half].rows;
    }
  }
  return sums[threadIdx.x];
}

template <class X, class T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(Forward<X, T> a) {
  const Batch<X, T> batch(a.at);
  Loss loss{0.0, 0};
  for (uint32_t d = a.at.layout.lane(); d < a.at.layout.depth; d += a.at.layout.lanes) {
    T squares = 0;
    batch.channel(d, [&](int, T code, T x, X& out) {
      const T residual = x - code;
      squares += residual * residual;
      out = rounded<X>(code);
    });
    loss.squares += squares;
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) loss.rows += batch.coded[i] && a.at.layout.lane() == 0;
  const Loss total = block_sum(loss);
  if (threadIdx.x == 0) a.losses[int64_t{blockIdx.y} * a.at.layout.blocks + blockIdx.x] = total;
}

// One block: the mean of the squares, and 2 / V.
template <class T>
__global__ void __launch_bounds__(kThreads) loss_kernel(Total<T> a) {
  Loss loss{0.0, 0};
  for (int64_t i = threadIdx.x; i < a.count; i += kThreads) {
    loss.squares += a.losses[i].squares;
    loss.rows += a.losses[i].rows;
  }
  const Loss total = block_sum(loss);
  if (threadIdx.x > 0) return;
  const double elements = static_cast<double>(total.rows) * a.depth;
  *a.loss = static_cast<T>(elements > 0 ? total.squares / elements : 0.0);
  *a.scale = static_cast<T>(elements > 0 ? 2.0 / elements : 0.0);
}

template <class X, class T>
__global__ void __launch_bounds__(kThreads) quantize_backward_kernel(Backward<X, T> a) {
  const Batch<X, T> batch(a.at);
  const T factor = *a.factor;
  for (uint32_t d = a.at.layout.lane(); d < a.at.layout.depth; d += a.at.layout.lanes) {
    T grad[kRowsEach];
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      grad[i] = batch.coded[i] ? widened<T>(a.grad[a.grad_strides.offset(batch.row[i], blockIdx.y) +
                                                   d * a.grad_strides.depth])
                               : T(0);
    }
    batch.channel(d, [&](int i, T code, T x, X& out) {
      out = rounded<X>(batch.coded[i] ? grad[i] + factor * (x - code) : T(0));
    });
  }
}

template <class X, class T>
Lookup<X, T> lookup(const Rows& x, const Rows& codes, const Chosen& chosen, Tensor& out) {
  const Rows target = rows_of(out, "the result");
  return {layout_of(x),
          static_cast<const X*>(x.data),
          strides_of(x),
          static_cast<const T*>(codes.data),
          strides_of(codes),
          codes.length,
          chosen,
          static_cast<X*>(out.mutable_data_ptr()),
          strides_of(target)};
}

dim3 grid_of(const Layout& layout, const Rows& x) {
  return dim3(layout.blocks, static_cast<unsigned>(x.heads));
}

ScalarType computing_type(const Tensor& x, const Tensor& codebook) {
  const bool wide =
      x.scalar_type() == ScalarType::Double || codebook.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor, Tensor> quantize(Tensor x, Tensor codebook, Tensor indices) {
  const Rows rows = rows_of(x, "x");
  rows_of_codebook(codebook, rows);
  const ScalarType dtype = computing_type(x, codebook);
  codebook = torch::stable::to(codebook, dtype);
  const Rows codes = rows_of_codebook(codebook, rows);
  const Chosen chosen = chosen_of(indices, rows);
  const int64_t count = layout_of(rows).blocks * rows.heads;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Loss));
  Tensor quantized = torch::stable::empty_like(x);
  Tensor loss = torch::stable::new_empty(x, {}, dtype);
  Tensor scale = torch::stable::new_empty(x, {}, dtype);
  Tensor losses = torch::stable::new_empty(x, {&bytes, 1}, ScalarType::Byte);
  const Device device(x);
  with_types(rows.dtype, dtype == ScalarType::Double, [&](auto* element, auto* computing) {
    using X = std::remove_pointer_t<decltype(element)>;
    using T = std::remove_pointer_t<decltype(computing)>;
    const Forward<X, T> a{lookup<X, T>(rows, codes, chosen, quantized),
                          static_cast<Loss*>(losses.mutable_data_ptr())};
    device.launch(quantize_kernel<X, T>, grid_of(a.at.layout, rows), kThreads, a);
    device.launch(loss_kernel<T>, dim3(1), kThreads,
                  Total<T>{a.losses, count, static_cast<double>(rows.depth),
                           loss.mutable_data_ptr<T>(), scale.mutable_data_ptr<T>()});
  });
  return {quantized, loss, scale};
}

Tensor quantize_backward(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook,
                         Tensor indices) {
  const Rows rows = rows_of(x, "x");
  const Rows grad = rows_of(grad_quantized, "grad_quantized");
  check(grad.dtype == rows.dtype && shape_text(grad_quantized) == shape_text(x),
        "grad_quantized must be like x, ", torch::headeronly::toString(rows.dtype), " ",
        shape_text(x), ", got ", torch::headeronly::toString(grad.dtype), " ",
        shape_text(grad_quantized));
  rows_of_codebook(codebook, rows);
  const ScalarType dtype = computing_type(x, codebook);
  check(factor.numel() == 1 && factor.scalar_type() == dtype, "factor must be a 0-d ",
        torch::headeronly::toString(dtype), " tensor, got ",
        torch::headeronly::toString(factor.scalar_type()), " ", shape_text(factor));
  codebook = torch::stable::to(codebook, dtype);
  const Rows codes = rows_of_codebook(codebook, rows);
  const Chosen chosen = chosen_of(indices, rows);
  Tensor grad_x = torch::stable::empty_like(x);
  const Device device(x);
  with_types(rows.dtype, dtype == ScalarType::Double, [&](auto* element, auto* computing) {
    using X = std::remove_pointer_t<decltype(element)>;
    using T = std::remove_pointer_t<decltype(computing)>;
    const Backward<X, T> a{lookup<X, T>(rows, codes, chosen, grad_x),
                           static_cast<const X*>(grad.data), strides_of(grad),
                           factor.const_data_ptr<T>()};
    device.launch(quantize_backward_kernel<X, T>, grid_of(a.at.layout, rows), kThreads, a);
  });
  return grad_x;
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CUDA, m) {
  m.impl("quantize", TORCH_BOX(&fastvq::quantize));
  m.impl("quantize_backward", TORCH_BOX(&fastvq::quantize_backward));
}
