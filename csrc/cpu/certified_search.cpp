// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"
#include "search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastvq {
namespace {

// Packed rows and packed codes of a task stay in a second-level cache of 1 MB or more together.
constexpr int64_t kRowBytes = 256 << 10;
constexpr int64_t kCodeBytes = 512 << 10;
constexpr int64_t kMostRows = 256;
// Tasks a thread gets at least, so that an uneven machine still finishes together.
constexpr int64_t kTasksPerThread = 4;
// Blocks whose suspects are compared before the next are scored; bounds the list of suspects.
constexpr int64_t kBlocksToCollect = 32;
// Room that transposing whole vectors may read past the last row.
constexpr int64_t kVectorSlack = 32;
// Scaled rows beyond this could overflow a score against codes of 2^21.
constexpr double kLongestRow = 0x1p100;
// Beyond these float32 centring and normalising lose their relative accuracy.
constexpr double kLargestFloat = 1e37;
constexpr double kSmallestFloat = 1e-37;

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr Candidate kNone{std::numeric_limits<double>::infinity(), -1};

}  // namespace

// One worker's memory for a task of `rows` rows (a whole number of panels).
struct CertifiedSearch::Scratch {
  Scratch(int64_t rows, int64_t stride, int64_t depth, int64_t suspects_size)
      : raw((rows + kVectorSlack) * stride + kVectorSlack),
        panels(rows * depth),
        scale(rows),
        best(rows),
        second(rows),
        threshold(rows),
        group(rows),
        profiles(rows),
        candidates(rows),
        suspects(suspects_size) {}

  Buffer<float> raw, panels, scale, best, second, threshold;
  Buffer<int32_t> group;
  Buffer<Profile> profiles;
  Buffer<Candidate> candidates;
  Buffer<Suspect> suspects;
};

CertifiedSearch::CertifiedSearch(const Scan<float>& scan, bool exact)
    : scan_(scan),
      codes_(scan.codes()),
      packed_(codes_),
      certificate_(codes_, packed_),
      exact_(exact),
      panel_rows_(kernels().panel_rows),
      stride_(codes_.padded_depth()),
      blocks_at_once_(std::max<int64_t>(
          1, kCodeBytes / (packed_.block_size() * static_cast<int64_t>(sizeof(float))))),
      shift_(codes_.depth()),
      threshold_(scan.x().count()),
      fate_(scan.x().count()) {
  const bool centred = codes_.metric() == Metric::kEuclidean;
  for (int64_t d = 0; d < codes_.depth(); ++d) {
    shift_[d] = centred ? static_cast<float>(packed_.centre()[d]) : 0.0f;
  }
}

bool CertifiedSearch::fits_float32(const Profile& profile) const {
  const Measure& row = profile.measure;
  switch (codes_.metric()) {
    case Metric::kEuclidean: {
      const double scaled = row.square * packed_.unit() * packed_.unit();
      return row.square < kLargestFloat * kLargestFloat && scaled < kLongestRow * kLongestRow;
    }
    case Metric::kCosine:
      return profile.inverse < kLargestFloat && profile.inverse > kSmallestFloat;
    default:
      return row.norm < kLongestRow * kLongestRow;
  }
}

// Reads, measures and packs the rows of a task; slots past the last row are zero.
void CertifiedSearch::load(const RowSet& set, Scratch& scratch) const {
  const int64_t rows = round_up(set.count, panel_rows_);
  const RowKernels<float>& kernel = row_kernels<float>();
  kernel.read(set, scratch.raw.get(), stride_);
  std::fill_n(scratch.raw.get() + set.count * stride_, (rows - set.count) * stride_, 0.0f);
  std::fill_n(scratch.scale.get(), rows, 0.0f);
  const bool euclidean = codes_.metric() == Metric::kEuclidean;
  for (int64_t i = 0; i < set.count; ++i) {
    const float* row = scratch.raw.get() + i * stride_;
    const Measure measure = kernel.measure(row, 1.0, packed_.centre(), stride_);
    scratch.profiles[i] = scan_.profile(row, measure);
    const double scale = euclidean ? packed_.unit() : scratch.profiles[i].row_scale;
    scratch.scale[i] = static_cast<float>(scale);
  }
  for (int64_t i = 0; i < rows; i += panel_rows_) {
    kernels().pack_rows(scratch.raw.get() + i * stride_, stride_, codes_.depth(), shift_.get(),
                        scratch.scale.get() + i, scratch.panels.get() + i * codes_.depth());
  }
}

void CertifiedSearch::score_task(const RowSet& set, Scratch& scratch) {
  load(set, scratch);
  const int64_t rows = round_up(set.count, panel_rows_);
  std::fill_n(scratch.best.get(), rows, kLowest);
  std::fill_n(scratch.second.get(), rows, kLowest);
  std::fill_n(scratch.group.get(), rows, 0);
  const int64_t groups = kernels().block_codes / kGroupCodes;
  for (int64_t b = 0; b < packed_.blocks(); b += blocks_at_once_) {
    const int64_t blocks = std::min(blocks_at_once_, packed_.blocks() - b);
    for (int64_t i = 0; i < rows; i += panel_rows_) {
      kernels().score(scratch.panels.get() + i * codes_.depth(), codes_.depth(), packed_.block(b),
                      packed_.bias(b), blocks, static_cast<int32_t>(b * groups),
                      {&scratch.best[i], &scratch.second[i], &scratch.group[i]});
    }
  }
  int64_t unfinished = 0;
  for (int64_t i = 0; i < set.count; ++i) {
    const Fate fate = decide(set.first + i, i, scratch);
    fate_[set.first + i] = fate;
    unfinished += fate != Fate::kDone;
  }
  unfinished_ += unfinished;
}

// Compares the row with the best group, answers, and says what is left to do.
CertifiedSearch::Fate CertifiedSearch::decide(int64_t row, int64_t slot, Scratch& scratch) {
  const Profile& profile = scratch.profiles[slot];
  if (profile.settled) {
    scan_.settle(row, profile);
    return Fate::kDone;
  }
  if (!fits_float32(profile)) return Fate::kScan;
  const int64_t begin = scratch.group[slot] * kGroupCodes;
  Candidate best = kNone;
  scan_.compare(scratch.raw.get() + slot * stride_, profile, begin,
                std::min(begin + kGroupCodes, codes_.count()), &best);
  if (best.index < 0) return Fate::kScan;
  scan_.answer(row, best);
  if (!exact_) return Fate::kDone;
  const float threshold = certificate_.threshold(profile.measure, profile.inverse, best.value);
  if (scratch.second[slot] < threshold) return Fate::kDone;
  threshold_[row] = threshold;
  return Fate::kRefine;
}

// Scores the rows again and compares, in ascending order, every group that reaches the threshold.
void CertifiedSearch::refine_task(const RowSet& set, Scratch& scratch) {
  load(set, scratch);
  const int64_t rows = round_up(set.count, panel_rows_);
  std::fill_n(scratch.threshold.get(), rows, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < set.count; ++i) {
    scratch.threshold[i] = threshold_[set.ids[i]];
    scratch.candidates[i] = kNone;
  }
  const int64_t groups = kernels().block_codes / kGroupCodes;
  for (int64_t b = 0; b < packed_.blocks(); b += kBlocksToCollect) {
    const int64_t blocks = std::min(kBlocksToCollect, packed_.blocks() - b);
    for (int64_t i = 0; i < rows; i += panel_rows_) {
      const int64_t found = kernels().collect(
          scratch.panels.get() + i * codes_.depth(), codes_.depth(), packed_.block(b),
          packed_.bias(b), blocks, static_cast<int32_t>(b * groups), &scratch.threshold[i],
          scratch.suspects.get());
      for (int64_t s = 0; s < found; ++s) {
        const int64_t slot = i + scratch.suspects[s].row;
        const int64_t begin = scratch.suspects[s].group * kGroupCodes;
        scan_.compare(scratch.raw.get() + slot * stride_, scratch.profiles[slot], begin,
                      std::min(begin + kGroupCodes, codes_.count()), &scratch.candidates[slot]);
      }
    }
  }
  for (int64_t i = 0; i < set.count; ++i) scan_.answer(set.ids[i], scratch.candidates[i]);
}

int64_t CertifiedSearch::rows_per_task(int64_t rows) const {
  const int64_t bytes = stride_ * static_cast<int64_t>(sizeof(float));
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t cached = std::min(kMostRows, kRowBytes / bytes);
  const int64_t share = divide_up(rows, threads * kTasksPerThread);
  return std::max(panel_rows_, std::min(cached, share) / panel_rows_ * panel_rows_);
}

template <class Task>
void CertifiedSearch::for_each_set(int64_t count, const int64_t* ids, const Task& task) {
  const int64_t rows = rows_per_task(count);
  const int64_t suspects = ids ? kBlocksToCollect * kernels().block_codes / kGroupCodes *
                                     panel_rows_
                               : 1;
  run_workers(divide_up(count, rows), [&](TaskQueue& queue) {
    Scratch scratch(rows, stride_, codes_.depth(), suspects);
    for (int64_t i; queue.take(i);) {
      const int64_t first = i * rows;
      const RowSet set{&scan_.x(), scan_.head(), first, std::min(rows, count - first),
                       ids ? ids + first : nullptr};
      task(set, scratch);
    }
  });
}

std::vector<int64_t> CertifiedSearch::rows_with(Fate fate) const {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < scan_.x().count(); ++i) {
    if (fate_[i] == fate) rows.push_back(i);
  }
  return rows;
}

void CertifiedSearch::run() {
  for_each_set(scan_.x().count(), nullptr,
               [&](const RowSet& set, Scratch& scratch) { score_task(set, scratch); });
  if (unfinished_ == 0) return;
  const std::vector<int64_t> refine = rows_with(Fate::kRefine);
  for_each_set(static_cast<int64_t>(refine.size()), refine.data(),
               [&](const RowSet& set, Scratch& scratch) { refine_task(set, scratch); });
  const std::vector<int64_t> scan = rows_with(Fate::kScan);
  scan_.run(static_cast<int64_t>(scan.size()), scan.data());
}

}  // namespace fastvq
