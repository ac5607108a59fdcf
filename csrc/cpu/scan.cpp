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
void Scan<T>::finish(int64_t row, const Profile& profile, const Candidate& best) const {
  if (profile.settled) {
    settle(row, profile);
  } else {
    answer(row, best);
  }
}

template <class T>
void Scan<T>::answer(int64_t row, const Candidate& best) const {
  const double factor = codes_.metric() == Metric::kCosine ? 0.5 : 1.0;
  // float64 distances may overflow for every code: all are then equally far
  const int64_t index = best.index < 0 ? codes_.first() : best.index;
  answers_.indices[row * answers_.heads] = index;
  answers_.distances[row * answers_.heads] = static_cast<T>(best.value * factor);
}

// Compares the rows of a set with codes [begin, end), a cacheful of codes at a time.
template <class T>
void Scan<T>::compare_rows(const RowSet& set, int64_t begin, int64_t end, T* raw,
                           Profile* profiles, Candidate* best) const {
  const int64_t stride = codes_.padded_depth();
  row_kernels<T>().read(set, raw, stride);
  for (int64_t i = 0; i < set.count; ++i) {
    profiles[i] = profile(raw + i * stride, codes_.measure(raw + i * stride));
    best[i] = kNone;
  }
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(T));
  const int64_t step = round_up(std::max<int64_t>(1, kCacheBytes / bytes), kGroupCodes);
  for (int64_t k = begin; k < end; k += step) {
    for (int64_t i = 0; i < set.count; ++i) {
      if (profiles[i].settled) continue;
      compare(raw + i * stride, profiles[i], k, std::min(end, k + step), &best[i]);
    }
  }
}

template <class T>
void Scan<T>::run(int64_t count, const int64_t* ids) const {
  if (count == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rows = std::clamp<int64_t>(divide_up(count, threads), 1, kRowsPerTask);
  const int64_t sets = divide_up(count, rows);
  // few rows: the codes are shared out as well, in parts of whole groups
  const int64_t wanted = sets < threads ? divide_up(threads, sets) : 1;
  const int64_t part = round_up(divide_up(codes_.count(), wanted), kGroupCodes);
  const int64_t parts = divide_up(codes_.count(), part);
  const Buffer<Candidate> best(parts * count);
  const Buffer<Profile> profiles(parts * count);
  run_workers(sets * parts, [&](TaskQueue& queue) {
    const Buffer<T> raw(rows * codes_.padded_depth());
    for (int64_t task; queue.take(task);) {
      const int64_t first = task / parts * rows;
      const int64_t slot = task % parts * count + first;
      const int64_t begin = task % parts * part;
      const RowSet set{&x_, head_, first, std::min(rows, count - first),
                       ids ? ids + first : nullptr};
      compare_rows(set, begin, std::min(codes_.count(), begin + part), raw.get(),
                   profiles.get() + slot, best.get() + slot);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    Candidate nearest = best[i];
    for (int64_t p = 1; p < parts; ++p) {
      if (best[p * count + i].value < nearest.value) nearest = best[p * count + i];
    }
    finish(ids ? ids[i] : i, profiles[i], nearest);
  }
}

template class Scan<float>;
template class Scan<double>;

}  // namespace fastvq
