// SPDX-License-Identifier: Apache-2.0
// nearest(x [B, M, H, D], codebook [H, K, D]) -> indices int64 [B, M, H], distances [B, M, H]
// for D <= 16 and the euclidean metric, by direct differences on the arithmetic units.
//
// Not yet measured on a GPU. Why it ships: on paper an element costs 2 D + 1.6 instructions
// (read off the SASS) in one launch, against about 3 in the coarse pass of the Triton kernels,
// which pad D to 16 and take some ten launches. But by their bound, on Gaussian data and 512 to
// 8192 codes, D = 1 leaves 60 to 99 % of the rows to float64, and D = 2 as many to the second
// pass, of three times the products. So it should win at D <= 2 for every size, and up to D = 16
// where launches are what takes the time. Beyond, the matrix units win.
//
// Exact: with u = 2^-24, fl(x - c) = (x - c)(1 + e), |e| <= u, and the sum of D squares by fused
// multiply-adds has only non-negative terms, so its relative error is at most g = (D + 2) u,
// second order aside. The code of the smallest computed sum is then within 2 g / (1 - g) of the
// nearest: 2.2e-6 at D = 16, where 1e-5 is promised. What underflows on the way loses at most D
// 2^-150, nothing beside a sum of kLeast or more. A row whose smallest sum lies under that
// without being 0 by equality, or overflows, is searched again in float64, where neither
// happens.
#include "device.h"
#include "view.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

namespace fastvq {
namespace {

constexpr int kThreads = 128;
constexpr int kGroup = 8;  // codes whose smallest sum is taken before it meets the best so far
constexpr int64_t kMostDepth = 16;
constexpr int kTileBytes = 32 << 10;

// 2^-100; float64 inputs have no wider type to turn to
template <class T>
constexpr T kLeast = sizeof(T) == 4 ? T(7.888609052210118e-31) : T(0);

struct Values {
  const void* data;
  ScalarType dtype;
  Strides strides;
};

template <class T>
struct Nearest {
  Values x, codes;
  uint32_t rows, num_codes, heads;
  int depth;
  int64_t* indices;
  T* distances;
};

template <class T>
__device__ T read(const Values& values, int64_t offset) {
  switch (values.dtype) {
    case ScalarType::Half:
      return static_cast<float>(static_cast<const c10::Half*>(values.data)[offset]);
    case ScalarType::BFloat16:
      return static_cast<float>(static_cast<const c10::BFloat16*>(values.data)[offset]);
    case ScalarType::Double:
      return static_cast<T>(static_cast<const double*>(values.data)[offset]);
    default:
      return static_cast<const float*>(values.data)[offset];
  }
}

// Reads a vector, padded with zeros; whether all of it is finite.
template <class T, int kDepth>
__device__ bool read_vector(const Values& values, uint32_t n, int depth, T (&out)[kDepth]) {
  const int64_t start = values.strides.offset(n, blockIdx.y);
  bool finite = true;
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    out[d] = d < depth ? read<T>(values, start + d * values.strides.depth) : T(0);
    finite &= std::abs(out[d]) < kInfinity<T>;
  }
  return finite;
}

// A code that is not finite becomes NaN, which no minimum takes.
template <class T, int kDepth>
__device__ void read_code(const Nearest<T>& a, uint32_t k, T (&out)[kDepth]) {
  if (k >= a.num_codes || !read_vector(a.codes, k, a.depth, out)) out[0] = kNan<T>;
}

template <class T, int kDepth>
__device__ T squares(const T (&x)[kDepth], const T (&code)[kDepth]) {
  T sum = 0;
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    const T difference = x[d] - code[d];
    sum = std::fma(difference, difference, sum);
  }
  return sum;
}

template <class T, int kDepth>
__device__ double squares64(const T (&x)[kDepth], const T (&code)[kDepth]) {
  double sum = 0;
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    const double difference = static_cast<double>(x[d]) - static_cast<double>(code[d]);
    sum = std::fma(difference, difference, sum);
  }
  return sum;
}

// The first of the codes whose sum is `best`, in the group where it was found.
template <class T, int kDepth>
__device__ uint32_t find(const Nearest<T>& a, const T (&x)[kDepth], T best, uint32_t group) {
  T code[kDepth] = {};
#pragma unroll 1
  for (uint32_t k = group * kGroup; k < group * kGroup + kGroup; ++k) {
    read_code(a, k, code);
    if (squares(x, code) == best) return k;
  }
  return 0;  // there is one
}

// Every code in float64, for a row whose sums leave the range of T: slow, and rare.
template <class T, int kDepth>
__device__ int64_t search64(const Nearest<T>& a, const T (&x)[kDepth]) {
  int64_t index = -1;
  double best = kInfinity<double>;
  T code[kDepth] = {};
#pragma unroll 1
  for (uint32_t k = 0; k < a.num_codes; ++k) {
    if (!read_vector(a.codes, k, a.depth, code)) continue;
    const double sum = squares64(x, code);
    // sums that overflow float64 as well are all equally far
    if (index < 0 || sum < best) {
      best = sum;
      index = k;
    }
  }
  return index;
}

template <class T, int kDepth>
__device__ void answer(const Nearest<T>& a, const T (&x)[kDepth], bool finite, T best,
                       uint32_t group, uint32_t n) {
  T code[kDepth] = {};
  int64_t index = -1;
  if (finite) {
    if (best < kInfinity<T>) {
      index = find(a, x, best, group);
      read_code(a, static_cast<uint32_t>(index), code);
    }
    const bool equal = best == T(0) && squares64(x, code) == 0.0;
    if (!(best < kInfinity<T>) || (best < kLeast<T> && !equal)) {
      index = search64(a, x);
      if (index >= 0) read_code(a, static_cast<uint32_t>(index), code);
    }
  }
  const int64_t out = static_cast<int64_t>(n) * a.heads + blockIdx.y;
  a.indices[out] = index < 0 ? 0 : index;
  a.distances[out] = index < 0 ? kNan<T> : static_cast<T>(squares64(x, code));
}

template <class T, int kDepth>
struct Shape {
  static constexpr int kVectorBytes = kDepth * static_cast<int>(sizeof(T));
  static constexpr int kRows = kVectorBytes <= 32 ? 4 : kVectorBytes <= 64 ? 2 : 1;  // a thread
  static constexpr int kTile = kTileBytes / kVectorBytes;                           // codes
};

template <class T, int kDepth>
__device__ void read_tile(const Nearest<T>& a, uint32_t first, T* tile) {
  T code[kDepth] = {};
  const uint32_t count =
      min(static_cast<uint32_t>(Shape<T, kDepth>::kTile),
          static_cast<uint32_t>(divide_up(a.num_codes - first, kGroup)) * kGroup);
  for (uint32_t k = threadIdx.x; k < count; k += kThreads) {
    read_code(a, first + k, code);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) tile[k * kDepth + d] = code[d];
  }
}

// A block walks over its rows; a codebook that fits the tile is read once and stays.
template <class T, int kDepth>
__global__ void __launch_bounds__(kThreads) nearest_kernel(Nearest<T> a) {
  constexpr int kRows = Shape<T, kDepth>::kRows;
  constexpr uint32_t kTile = Shape<T, kDepth>::kTile;
  alignas(16) __shared__ T tile[kTile * kDepth];
  const bool resident = a.num_codes <= kTile;
  if (resident) {
    read_tile<T, kDepth>(a, 0, tile);
    __syncthreads();
  }
  constexpr int64_t kBlockRows = kThreads * kRows;
  for (int64_t first = blockIdx.x * kBlockRows; first < a.rows; first += gridDim.x * kBlockRows) {
    T x[kRows][kDepth] = {};
    bool finite[kRows];
    T best[kRows];
    uint32_t group[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t n = first + r * kThreads + threadIdx.x;
      finite[r] = n < a.rows && read_vector(a.x, static_cast<uint32_t>(n), a.depth, x[r]);
      best[r] = kInfinity<T>;
      group[r] = 0;
    }
    for (uint32_t start = 0; start < a.num_codes; start += kTile) {
      if (!resident) {
        __syncthreads();
        read_tile<T, kDepth>(a, start, tile);
        __syncthreads();
      }
      const uint32_t groups =
          static_cast<uint32_t>(divide_up(min(kTile, a.num_codes - start), kGroup));
      for (uint32_t g = 0; g < groups; ++g) {
        T least[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) least[r] = kInfinity<T>;
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          T code[kDepth];
#pragma unroll
          for (int d = 0; d < kDepth; ++d) code[d] = tile[(g * kGroup + c) * kDepth + d];
#pragma unroll
          for (int r = 0; r < kRows; ++r) least[r] = std::fmin(least[r], squares(x[r], code));
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (least[r] < best[r]) {
            best[r] = least[r];
            group[r] = start / kGroup + g;
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t n = first + r * kThreads + threadIdx.x;
      if (n < a.rows) answer(a, x[r], finite[r], best[r], group[r], static_cast<uint32_t>(n));
    }
  }
}

template <class T, int kDepth>
void search(const Device& device, const Nearest<T>& a) {
  const int64_t tiles = divide_up(a.rows, kThreads * Shape<T, kDepth>::kRows);
  // as many blocks as tiles of the codebook fit a multiprocessor of 228 KiB
  const int64_t most = 7 * static_cast<int64_t>(device.processors());
  device.launch(nearest_kernel<T, kDepth>,
                dim3(static_cast<unsigned>(std::min(tiles, most)), a.heads), kThreads, a);
}

template <class T>
void search(const Device& device, const Nearest<T>& a) {
  if (a.depth <= 1) return search<T, 1>(device, a);
  if (a.depth <= 2) return search<T, 2>(device, a);
  if (a.depth <= 4) return search<T, 4>(device, a);
  if (a.depth <= 8) return search<T, 8>(device, a);
  search<T, 16>(device, a);
}

template <class T>
void run(const Rows& x, const Rows& codes, Tensor& indices, Tensor& distances) {
  if (x.count() == 0 || x.heads == 0) return;
  search(Device(indices),
         Nearest<T>{{x.data, x.dtype, strides_of(x)},
                    {codes.data, codes.dtype, strides_of(codes)},
                    static_cast<uint32_t>(x.count()),
                    static_cast<uint32_t>(codes.length),
                    static_cast<uint32_t>(x.heads),
                    static_cast<int>(x.depth),
                    indices.mutable_data_ptr<int64_t>(),
                    distances.mutable_data_ptr<T>()});
}

std::tuple<Tensor, Tensor> nearest(Tensor x, Tensor codebook, std::string metric,
                                   std::string precision) {
  const Rows rows = rows_of(x, "x");
  const Rows codes = rows_of_codebook(codebook, rows);
  check(precision == "exact" || precision == "fast", "precision must be 'exact' or 'fast', got '",
        precision, "'");
  check<std::runtime_error>(
      metric == "euclidean" && rows.depth <= kMostDepth,
      "the CUDA search of the native backend takes vectors of at most ", kMostDepth,
      " channels and the metric 'euclidean', got ", rows.depth, " channels and '", metric,
      "'; use_backend('triton') searches the rest");
  const bool wide = is_wide(rows) || is_wide(codes);
  const int64_t shape[] = {rows.batch, rows.length, rows.heads};
  Tensor indices = torch::stable::new_empty(x, {shape, 3}, ScalarType::Long);
  Tensor distances =
      torch::stable::new_empty(x, {shape, 3}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    run<double>(rows, codes, indices, distances);
  } else {
    run<float>(rows, codes, indices, distances);
  }
  return {indices, distances};
}

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CUDA, m) {
  m.impl("nearest", TORCH_BOX(&fastvq::nearest));
}
