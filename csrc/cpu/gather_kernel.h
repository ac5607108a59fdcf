// SPDX-License-Identifier: Apache-2.0
// Writing codes in the place of rows, and the gradient of that: elementwise passes over one run.
// Included once for each instruction set, inside its namespace and target region.

constexpr int64_t kTileRows = 128;
constexpr int64_t kTileDepth = 16;
constexpr int kSums = 8;

template <class X, class T>
FASTVQ_INLINE double forward_cell(X x, T code, bool used, X* out) {
  const T difference = used ? static_cast<T>(x) - code : T(0);
  *out = static_cast<X>(code);
  return static_cast<double>(difference) * static_cast<double>(difference);
}

template <class X, class T>
FASTVQ_INLINE X backward_cell(X x, X grad, T code, bool used, T factor) {
  const T value = static_cast<T>(grad) + factor * (static_cast<T>(x) - code);
  return static_cast<X>(used ? value : T(0));
}

// cell(i) for i in [0, count), summed into eight sums by i mod 8: the same order on every machine
template <class Cell>
FASTVQ_INLINE void sum_line(int64_t count, double* sums, const Cell& cell) {
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s) sums[s] += cell(i + s);
  }
  for (; i < count; ++i) sums[i % kSums] += cell(i);
}

// line(d, codes of that depth for all rows of the run, zero where a row has none)
template <class T, class Line>
FASTVQ_INLINE void each_column(const GatherRun<T>& run, const Line& line) {
  T tile[kTileDepth * kTileRows];
  for (int64_t begin = 0; begin < run.depth; begin += kTileDepth) {
    const int64_t size = run.depth - begin < kTileDepth ? run.depth - begin : kTileDepth;
    for (int64_t i = 0; i < run.count; ++i) {
      for (int64_t d = 0; d < size; ++d) {
        tile[d * kTileRows + i] = run.codes[i] ? run.codes[i][begin + d] : T(0);
      }
    }
    for (int64_t d = 0; d < size; ++d) line(begin + d, tile + d * kTileRows);
  }
}

template <class X, class T>
void gather_forward(const GatherRun<T>& run, const X* x, X* out, double* sums) {
  if (run.x_depth == 1 && run.out_depth == 1) {
    for (int64_t i = 0; i < run.count; ++i) {
      const X* source = x + i * run.x_row;
      X* target = out + i * run.out_row;
      const T* code = run.codes[i];
      if (code == nullptr) {
        for (int64_t d = 0; d < run.depth; ++d) target[d] = X(0);
        continue;
      }
      sum_line(run.depth, sums, [&](int64_t d) {
        return forward_cell(source[d], code[d], true, target + d);
      });
    }
    return;
  }
  bool used[kTileRows];
  for (int64_t i = 0; i < run.count; ++i) used[i] = run.codes[i] != nullptr;
  const bool unit = run.x_row == 1 && run.out_row == 1;
  each_column(run, [&](int64_t d, const T* code) {
    const X* source = x + d * run.x_depth;
    X* target = out + d * run.out_depth;
    if (unit) {
      sum_line(run.count, sums, [&](int64_t i) {
        return forward_cell(source[i], code[i], used[i], target + i);
      });
    } else {
      sum_line(run.count, sums, [&](int64_t i) {
        return forward_cell(source[i * run.x_row], code[i], used[i], target + i * run.out_row);
      });
    }
  });
}

template <class X, class T>
void gather_backward(const GatherRun<T>& run, const X* x, const X* grad, T factor, X* out) {
  if (run.x_depth == 1 && run.out_depth == 1 && run.grad_depth == 1) {
    for (int64_t i = 0; i < run.count; ++i) {
      const X* source = x + i * run.x_row;
      const X* slope = grad + i * run.grad_row;
      X* target = out + i * run.out_row;
      const T* code = run.codes[i];
      for (int64_t d = 0; d < run.depth; ++d) {
        target[d] = code ? backward_cell(source[d], slope[d], code[d], true, factor) : X(0);
      }
    }
    return;
  }
  bool used[kTileRows];
  for (int64_t i = 0; i < run.count; ++i) used[i] = run.codes[i] != nullptr;
  const bool unit = run.x_row == 1 && run.out_row == 1 && run.grad_row == 1;
  each_column(run, [&](int64_t d, const T* code) {
    const X* source = x + d * run.x_depth;
    const X* slope = grad + d * run.grad_depth;
    X* target = out + d * run.out_depth;
    if (unit) {
      for (int64_t i = 0; i < run.count; ++i) {
        target[i] = backward_cell(source[i], slope[i], code[i], used[i], factor);
      }
    } else {
      for (int64_t i = 0; i < run.count; ++i) {
        target[i * run.out_row] = backward_cell(source[i * run.x_row], slope[i * run.grad_row],
                                                code[i], used[i], factor);
      }
    }
  });
}
