// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"
#include "search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastvq {
namespace {

constexpr int64_t kRowsPerTask = 16;
// Codes compared with all rows of a task before the next ones are fetched: half of a small L2.
constexpr int64_t kCacheBytes = 256 << 10;
constexpr Candidate kNone{std::numeric_limits<double>::infinity(), -1};

}  // namespace

template <class T>
Profile Scan<T>::profile(const T* row, const Measure& measure) const {
  const bool cosine = codes_.metric() == Metric::kCosine;
  Profile profile{measure, 1.0, 1.0, false};
  if (cosine || !std::isfinite(measure.norm)) {
    profile.inverse = inverse_norm(measure.norm, row, codes_.depth());
    profile.settled = std::isnan(profile.inverse) || (cosine && profile.inverse == 0.0);
  }
  if (cosine) profile.row_scale = profile.inverse;
  return profile;
}

template <class T>
void Scan<T>::settle(int64_t row, const Profile& profile) const {
  const bool zero = profile.inverse == 0.0;
  answers_.indices[row * answers_.heads] = zero ? codes_.first() : 0;
  answers_.distances[row * answers_.heads] = zero ? T(1) : std::numeric_limits<T>::quiet_NaN();
}

template <class T>
void Scan<T>::answer(int64_t row, const Candidate& best) const {
  const double factor = codes_.metric() == Metric::kCosine ? 0.5 : 1.0;
  // float64 distances may overflow for every code: all are then equally far
  const int64_t index = best.index < 0 ? codes_.first() : best.index;
  answers_.indices[row * answers_.heads] = index;
  answers_.distances[row * answers_.heads] = static_cast<T>(best.value * factor);
}

template <class T>
void Scan<T>::run_task(const RowSet& set, T* raw) const {
  const int64_t stride = codes_.padded_depth();
  row_kernels<T>().read(set, raw, stride);
  Profile profiles[kRowsPerTask];
  Candidate best[kRowsPerTask];
  for (int64_t i = 0; i < set.count; ++i) {
    profiles[i] = profile(raw + i * stride, codes_.measure(raw + i * stride));
    best[i] = kNone;
  }
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(T));
  const int64_t step = round_up(std::max<int64_t>(1, kCacheBytes / bytes), kGroupCodes);
  for (int64_t k = 0; k < codes_.count(); k += step) {
    const int64_t end = std::min(codes_.count(), k + step);
    for (int64_t i = 0; i < set.count; ++i) {
      if (!profiles[i].settled) compare(raw + i * stride, profiles[i], k, end, &best[i]);
    }
  }
  for (int64_t i = 0; i < set.count; ++i) {
    const int64_t row = set.ids ? set.ids[i] : set.first + i;
    if (profiles[i].settled) {
      settle(row, profiles[i]);
    } else {
      answer(row, best[i]);
    }
  }
}

template <class T>
void Scan<T>::run(int64_t count, const int64_t* ids) const {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rows = std::clamp<int64_t>(divide_up(count, threads), 1, kRowsPerTask);
  run_workers(divide_up(count, rows), [&](TaskQueue& queue) {
    const Buffer<T> raw(rows * codes_.padded_depth());
    for (int64_t task; queue.take(task);) {
      const int64_t first = task * rows;
      const int64_t size = std::min(rows, count - first);
      run_task({&x_, head_, first, size, ids ? ids + first : nullptr}, raw.get());
    }
  });
}

template class Scan<float>;
template class Scan<double>;

}  // namespace fastvq
