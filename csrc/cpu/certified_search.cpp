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
// Comparing a group exactly costs about as much as scoring this many in float32.
constexpr int64_t kGroupsPerComparison = 8;
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
  Scratch(int64_t rows, int64_t stride, int64_t words, int64_t suspects_size)
      : raw((rows + kVectorSlack) * stride + kVectorSlack),
        panels(rows * words),
        scale(rows),
        length(rows),
        loss(rows),
        best(rows * kTrackers),
        second(rows * kTrackers),
        runner(rows),
        rest(rows),
        threshold(rows),
        group(rows * kTrackers),
        tracker(rows),
        profiles(rows),
        candidates(rows),
        compared(rows),
        suspects(suspects_size) {}

  // Of the panel that begins at a slot.
  PanelState state(int64_t slot) const {
    const int64_t first = slot * kTrackers;
    return {&best[first], &second[first], &group[first]};
  }

  Buffer<float> raw, panels, scale, length, loss, best, second, runner, rest, threshold;
  Buffer<int32_t> group, tracker;
  Buffer<Profile> profiles;
  Buffer<Candidate> candidates;
  Buffer<int64_t> compared;  // groups of the row, in refinement
  Buffer<Suspect> suspects;
};

CertifiedSearch::CertifiedSearch(const Scan<float>& scan, const ScoreKernels& pass, bool exact)
    : scan_(scan),
      codes_(scan.codes()),
      pass_(pass),
      packed_(codes_, pass),
      certificate_(codes_, packed_, pass),
      exact_(exact),
      words_(pass.words(codes_.depth())),
      stride_(codes_.padded_depth()),
      blocks_at_once_(std::max<int64_t>(
          1, kCodeBytes / (packed_.block_size() * static_cast<int64_t>(sizeof(float))))),
      most_suspects_(&pass == &kernels().fine
                         ? codes_.count()
                         : std::max(kGroupsPerComparison, codes_.count() / kGroupCodes /
                                                              kGroupsPerComparison)),
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
  const int64_t rows = round_up(set.count, pass_.panel_rows);
  const RowKernels<float>& kernel = row_kernels<float>();
  kernel.read(set, scratch.raw.get(), stride_);
  std::fill_n(scratch.raw.get() + set.count * stride_, (rows - set.count) * stride_, 0.0f);
  std::fill_n(scratch.scale.get(), rows, 0.0f);
  std::fill_n(scratch.length.get(), rows, 0.0f);
  const bool euclidean = codes_.metric() == Metric::kEuclidean;
  for (int64_t i = 0; i < set.count; ++i) {
    const float* row = scratch.raw.get() + i * stride_;
    const Measure measure = kernel.measure(row, 1.0, packed_.centre(), stride_);
    scratch.profiles[i] = scan_.profile(row, measure);
    const double scale = euclidean ? packed_.unit() : scratch.profiles[i].row_scale;
    const double square = euclidean ? measure.square : measure.norm;
    scratch.scale[i] = static_cast<float>(scale);
    scratch.length[i] = static_cast<float>(std::sqrt(square) * scale);
  }
  for (int64_t i = 0; i < rows; i += pass_.panel_rows) {
    pass_.pack_rows(scratch.raw.get() + i * stride_, stride_, codes_.depth(), shift_.get(),
                    scratch.scale.get() + i, scratch.length.get() + i,
                    scratch.panels.get() + i * words_, scratch.loss.get() + i);
  }
}

void CertifiedSearch::score_task(const RowSet& set, Scratch& scratch) {
  load(set, scratch);
  const int64_t rows = round_up(set.count, pass_.panel_rows);
  std::fill_n(scratch.best.get(), rows * kTrackers, kLowest);
  std::fill_n(scratch.second.get(), rows * kTrackers, kLowest);
  std::fill_n(scratch.group.get(), rows * kTrackers, 0);
  std::fill_n(scratch.tracker.get(), rows, 0);
  const int64_t groups = pass_.block_codes / kGroupCodes;
  for (int64_t b = 0; b < packed_.blocks(); b += blocks_at_once_) {
    const int64_t blocks = std::min(blocks_at_once_, packed_.blocks() - b);
    for (int64_t i = 0; i < rows; i += pass_.panel_rows) {
      pass_.score(scratch.panels.get() + i * words_, words_, packed_.block(b), packed_.bias(b),
                  blocks, static_cast<int32_t>(b * groups),
                  scratch.state(i));
    }
  }
  for (int64_t i = 0; i < rows; i += pass_.panel_rows) {
    pass_.summarize(scratch.state(i), {&scratch.tracker[i], &scratch.runner[i], &scratch.rest[i]});
  }
  int64_t unfinished = 0;
  for (int64_t i = 0; i < set.count; ++i) {
    const int64_t row = set.ids ? set.ids[i] : set.first + i;
    const Fate fate = decide(row, i, scratch);
    fate_[row] = fate;
    unfinished += fate != Fate::kDone;
  }
  unfinished_ += unfinished;
}

// Compares the row with the best group, and with the other trackers' best where they come near,
// answers, and says what is left to do.
CertifiedSearch::Fate CertifiedSearch::decide(int64_t row, int64_t slot, Scratch& scratch) {
  const Profile& profile = scratch.profiles[slot];
  if (profile.settled) {
    scan_.settle(row, profile);
    return Fate::kDone;
  }
  if (!fits_float32(profile)) return Fate::kScan;
  const int64_t lane = slot % pass_.panel_rows;
  const PanelState state = scratch.state(slot - lane);
  const float* raw = scratch.raw.get() + slot * stride_;
  const int64_t winner = scratch.tracker[slot];
  Candidate best = kNone;
  compare_group(raw, profile, state.group[winner * pass_.panel_rows + lane], &best);
  if (best.index < 0) return Fate::kScan;
  if (exact_) {
    const float threshold = certificate_.threshold(profile.measure, profile.inverse,
                                                   scratch.loss[slot], best.value);
    if (!(scratch.rest[slot] < threshold)) {
      threshold_[row] = threshold;
      return Fate::kRefine;
    }
    if (!(scratch.runner[slot] < threshold)) {
      for (int64_t t = 0; t < kTrackers; ++t) {
        const int64_t i = t * pass_.panel_rows + lane;
        if (t == winner || state.best[i] < threshold) continue;
        Candidate other = kNone;
        compare_group(raw, profile, state.group[i], &other);
        const bool ties = other.value == best.value && other.index < best.index;
        if (other.value < best.value || ties) best = other;
      }
    }
  }
  scan_.answer(row, best);
  return Fate::kDone;
}

void CertifiedSearch::compare_group(const float* row, const Profile& profile, int64_t group,
                                    Candidate* best) const {
  const int64_t begin = group * kGroupCodes;
  scan_.compare(row, profile, begin, std::min(begin + kGroupCodes, codes_.count()), best);
}

// Scores the rows again and compares, in ascending order, every group that reaches the threshold.
void CertifiedSearch::refine_task(const RowSet& set, Scratch& scratch) {
  load(set, scratch);
  const int64_t rows = round_up(set.count, pass_.panel_rows);
  std::fill_n(scratch.threshold.get(), rows, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < set.count; ++i) {
    scratch.threshold[i] = threshold_[set.ids[i]];
    scratch.candidates[i] = kNone;
    scratch.compared[i] = 0;
  }
  const int64_t groups = pass_.block_codes / kGroupCodes;
  for (int64_t b = 0; b < packed_.blocks(); b += kBlocksToCollect) {
    const int64_t blocks = std::min(kBlocksToCollect, packed_.blocks() - b);
    for (int64_t i = 0; i < rows; i += pass_.panel_rows) {
      const int64_t found = pass_.collect(
          scratch.panels.get() + i * words_, words_, packed_.block(b), packed_.bias(b), blocks,
          static_cast<int32_t>(b * groups), &scratch.threshold[i], scratch.suspects.get());
      compare_suspects(i, found, scratch);
    }
  }
  for (int64_t i = 0; i < set.count; ++i) {
    if (scratch.compared[i] > most_suspects_) {
      fate_[set.ids[i]] = Fate::kFiner;
    } else {
      scan_.answer(set.ids[i], scratch.candidates[i]);
    }
  }
}

void CertifiedSearch::compare_suspects(int64_t panel, int64_t found, Scratch& scratch) const {
  for (int64_t s = 0; s < found; ++s) {
    const int64_t slot = panel + scratch.suspects[s].row;
    if (++scratch.compared[slot] > most_suspects_) {
      // no more of this row
      scratch.threshold[slot] = std::numeric_limits<float>::infinity();
      continue;
    }
    compare_group(scratch.raw.get() + slot * stride_, scratch.profiles[slot],
                  scratch.suspects[s].group, &scratch.candidates[slot]);
  }
}

int64_t CertifiedSearch::rows_per_task(int64_t rows) const {
  const int64_t bytes = stride_ * static_cast<int64_t>(sizeof(float));
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t cached = std::min(kMostRows, kRowBytes / bytes);
  const int64_t share = divide_up(rows, threads * kTasksPerThread);
  return std::max(pass_.panel_rows, std::min(cached, share) / pass_.panel_rows * pass_.panel_rows);
}

template <class Task>
void CertifiedSearch::for_each_set(int64_t count, const int64_t* ids, const Task& task) {
  const int64_t rows = rows_per_task(count);
  const int64_t suspects =
      ids ? kBlocksToCollect * pass_.block_codes / kGroupCodes * pass_.panel_rows : 1;
  run_workers(divide_up(count, rows), [&](TaskQueue& queue) {
    Scratch scratch(rows, stride_, words_, suspects);
    for (int64_t i; queue.take(i);) {
      const int64_t first = i * rows;
      const RowSet set{&scan_.x(), scan_.head(), first, std::min(rows, count - first),
                       ids ? ids + first : nullptr};
      task(set, scratch);
    }
  });
}

std::vector<int64_t> CertifiedSearch::rows_with(Fate fate, int64_t count,
                                                const int64_t* ids) const {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = ids ? ids[i] : i;
    if (fate_[row] == fate) rows.push_back(row);
  }
  return rows;
}

std::vector<int64_t> CertifiedSearch::run(int64_t count, const int64_t* ids) {
  for_each_set(count, ids,
               [&](const RowSet& set, Scratch& scratch) { score_task(set, scratch); });
  SearchCounts& totals = search_totals();
  totals.scored += count;
  totals.certified += count - unfinished_;
  if (unfinished_ == 0) return {};
  const std::vector<int64_t> refine = rows_with(Fate::kRefine, count, ids);
  for_each_set(static_cast<int64_t>(refine.size()), refine.data(),
               [&](const RowSet& set, Scratch& scratch) { refine_task(set, scratch); });
  const std::vector<int64_t> scan = rows_with(Fate::kScan, count, ids);
  scan_.run(static_cast<int64_t>(scan.size()), scan.data());
  const std::vector<int64_t> left = rows_with(Fate::kFiner, count, ids);
  totals.scanned += static_cast<int64_t>(scan.size());
  totals.left += static_cast<int64_t>(left.size());
  return left;
}

SearchCounts& search_totals() {
  static SearchCounts totals;
  return totals;
}

}  // namespace fastvq
