// SPDX-License-Identifier: Apache-2.0
// The search of one head: every row against every code in float64, or float32 scores and a proof.
#pragma once

#include "certify.h"
#include "codes.h"

#include <atomic>
#include <cstdint>
#include <vector>

namespace fastvq {

// Where the answers of one head go: element r * heads of each output belongs to row r.
template <class T>
struct Answers {
  int64_t* indices;
  T* distances;
  int64_t heads;
};

// What is known of a row before it meets a code.
struct Profile {
  Measure measure;
  double inverse;    // reciprocal norm
  double row_scale;  // what compare() multiplies the row by
  bool settled;      // not finite, or zero under the cosine: no search
};

template <class T>
class Scan {
 public:
  Scan(const Rows& x, int64_t head, const Codes<T>& codes, Answers<T> answers)
      : x_(x), head_(head), codes_(codes), answers_(answers) {}

  // Compares `count` rows (those named by ids, or all from 0 on) with every code.
  void run(int64_t count, const int64_t* ids) const;

  Profile profile(const T* row, const Measure& measure) const;
  // Answers a settled row.
  void settle(int64_t row, const Profile& profile) const;
  void answer(int64_t row, const Candidate& best) const;
  void compare(const T* row, const Profile& profile, int64_t begin, int64_t end,
               Candidate* best) const {
    row_kernels<T>().compare(row, profile.row_scale, codes_.view(),
                                 codes_.metric() == Metric::kDot, begin, end, best);
  }

  const Rows& x() const { return x_; }
  int64_t head() const { return head_; }
  const Codes<T>& codes() const { return codes_; }

 private:
  void compare_rows(const RowSet& set, int64_t begin, int64_t end, T* raw, Profile* profiles,
                    Candidate* best) const;
  void finish(int64_t row, const Profile& profile, const Candidate& best) const;

  const Rows& x_;
  int64_t head_;
  const Codes<T>& codes_;
  Answers<T> answers_;
};

// Rows, over all searches of the process. For those who measure: relaxed, and never reset.
struct SearchCounts {
  std::atomic<int64_t> scored{0}, certified{0}, left{0}, scanned{0};
};
SearchCounts& search_totals();

// The scores of one fast pass first; what they do not prove is compared in float64.
class CertifiedSearch {
 public:
  CertifiedSearch(const Scan<float>& scan, const ScoreKernels& pass, bool exact);

  // Answers `count` rows (those named by ids, or all from 0 on) but for those it returns: rows for
  // which a finer pass costs less than comparing what this one leaves open.
  std::vector<int64_t> run(int64_t count, const int64_t* ids);

 private:
  struct Scratch;
  enum class Fate : uint8_t { kDone, kRefine, kScan, kFiner };

  void load(const RowSet& set, Scratch& scratch) const;
  void score_task(const RowSet& set, Scratch& scratch);
  void refine_task(const RowSet& set, Scratch& scratch);
  void compare_suspects(int64_t panel, int64_t found, Scratch& scratch) const;
  void compare_group(const float* row, const Profile& profile, int64_t group,
                     Candidate* best) const;
  Fate decide(int64_t row, int64_t slot, Scratch& scratch);
  bool fits_float32(const Profile& profile) const;
  int64_t rows_per_task(int64_t rows) const;
  template <class Task>
  void for_each_set(int64_t count, const int64_t* ids, const Task& task);
  std::vector<int64_t> rows_with(Fate fate, int64_t count, const int64_t* ids) const;

  const Scan<float>& scan_;
  const Codes<float>& codes_;  // those of the scan
  const ScoreKernels& pass_;
  PackedCodes packed_;
  Certificate certificate_;
  bool exact_;
  int64_t words_, stride_, blocks_at_once_;
  int64_t most_suspects_;  // groups of a row, beyond which a finer pass takes it
  Buffer<float> shift_;      // [D] what pack_rows subtracts
  Buffer<float> threshold_;  // [N] of the rows to refine
  Buffer<Fate> fate_;        // [N]
  std::atomic<int64_t> unfinished_{0};
};

// One head of rows, or of codes.
struct Head {
  const Rows& rows;
  int64_t head;
};

// The whole search of one head, by whichever of the above is fastest.
template <class T>
void search_head(Head x, Head codebook, Metric metric, bool exact, Answers<T> answers);

}  // namespace fastvq
