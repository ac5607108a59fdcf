// SPDX-License-Identifier: Apache-2.0
// The gradients that are turned or mixed for each row: dot products first, then a weighted sum.
#pragma once

#include "kernels.h"

#include <cmath>
#include <cstdint>

namespace fastvq {

// A row of gradient: grad * g + x * x + difference * (x - code).
struct Weights {
  double grad, x, difference;
};

struct Rotation {
  static constexpr int kDots = 5;
  static void add(double x, double code, double grad, double* dots, int64_t stride) {
    dots[0] += x * x;
    dots[stride] += code * code;
    dots[2 * stride] += x * code;
    dots[3 * stride] += x * grad;
    dots[4 * stride] += code * grad;
  }
  static Weights weights(const double* dots, int64_t stride) {
    const double norm_x = std::sqrt(dots[0]), norm_c = std::sqrt(dots[stride]);
    if (!(norm_x > 0 || norm_x != norm_x)) return {1, 0, 0};
    const double unit_c = norm_c > 0 ? 1 / norm_c : norm_c;
    const double scale = norm_c / norm_x;
    const double cosine = dots[2 * stride] / norm_x * unit_c;
    const double along_x = dots[3 * stride] / norm_x, along_c = dots[4 * stride] * unit_c;
    const double mean = 1 + cosine > kOpposite ? (along_x + along_c) / (1 + cosine) : 0;
    return {scale, (scale * (2 * along_c - mean) - mean) / norm_x, mean / norm_x};
  }
  static constexpr double kOpposite = 1.0 / (int64_t{1} << 32);
};

struct Diveq {
  static constexpr int kDots = 2;
  static void add(double x, double code, double grad, double* dots, int64_t stride) {
    dots[0] += (x - code) * (x - code);
    dots[stride] += (x - code) * grad;
  }
  static Weights weights(const double* dots, int64_t stride) {
    return {1, 0, dots[0] > 0 ? -dots[stride] / dots[0] : 0};
  }
};

// cell(i, d) for the rows of a run that have a code, in the order in which x lies in memory
template <class T, class Cell>
void each_cell(const GatherRun<T>& run, const Cell& cell) {
  if (run.x_depth == 1) {
    for (int64_t i = 0; i < run.count; ++i) {
      if (run.codes[i] == nullptr) continue;
      for (int64_t d = 0; d < run.depth; ++d) cell(i, d);
    }
    return;
  }
  for (int64_t d = 0; d < run.depth; ++d) {
    for (int64_t i = 0; i < run.count; ++i) {
      if (run.codes[i] != nullptr) cell(i, d);
    }
  }
}

// At most kRows rows at once.
template <class Estimator, int64_t kRows, class X, class T, class O>
void directional_run(const GatherRun<T>& run, const X* x, const X* grad, double factor,
                     bool to_codes, O* out) {
  const auto value = [&](const X* p, int64_t i, int64_t row, int64_t d, int64_t depth) {
    return static_cast<double>(static_cast<T>(p[i * row + d * depth]));
  };
  double dots[Estimator::kDots * kRows] = {};
  each_cell(run, [&](int64_t i, int64_t d) {
    Estimator::add(value(x, i, run.x_row, d, run.x_depth), run.codes[i][d],
                   value(grad, i, run.grad_row, d, run.grad_depth), dots + i, kRows);
  });
  Weights weights[kRows];
  for (int64_t i = 0; i < run.count; ++i) {
    weights[i] = Estimator::weights(dots + i, kRows);
    if (to_codes) weights[i] = {0, 0, -weights[i].difference};
    weights[i].difference += factor;
    if (run.codes[i] != nullptr) continue;
    for (int64_t d = 0; d < run.depth; ++d) out[i * run.out_row + d * run.out_depth] = O(0);
  }
  each_cell(run, [&](int64_t i, int64_t d) {
    const double row = value(x, i, run.x_row, d, run.x_depth);
    const double sum = weights[i].grad * value(grad, i, run.grad_row, d, run.grad_depth) +
                       weights[i].x * row + weights[i].difference * (row - run.codes[i][d]);
    out[i * run.out_row + d * run.out_depth] = static_cast<O>(static_cast<T>(sum));
  });
}

}  // namespace fastvq
