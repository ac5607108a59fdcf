// SPDX-License-Identifier: Apache-2.0
// Scores compared by groups of codes, which is all that leaves the fast pass.
// Included once for each product, inside its namespace and target region.

constexpr int kBlockGroups = kBlockCodes / kGroupCodes;

FASTVQ_INLINE Floats group_score(const Scores& score, int group, int v) {
  const int c = group * static_cast<int>(kGroupCodes);
  return maximum(maximum(score[c][v], score[c + 1][v]), maximum(score[c + 2][v], score[c + 3][v]));
}

void score(const float* panel, int64_t words, const float* packed, const float* bias,
           int64_t blocks, int32_t first_group, PanelState state) {
  const ScoreSession session;
  for (int64_t b = 0; b < blocks; ++b) {
    Scores scores;
    score_block(panel, words, packed + b * kBlockCodes * words, bias + b * kBlockCodes, scores);
    const int32_t id = first_group + static_cast<int32_t>(b) * kBlockGroups;
    const int64_t tracker = id / kBlockGroups % kTrackers * kPanelRows;
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) {
      const int64_t row = tracker + v * kLanes;
      Floats best = load(state.best + row);
      Floats second = load(state.second + row);
#pragma GCC unroll 4
      for (int g = 0; g < kBlockGroups; ++g) {
        const Floats value = group_score(scores, g, v);
        assign_where_greater(value, best, id + g, state.group + row);
        second = maximum(second, minimum(best, value));
        best = maximum(best, value);
      }
      store(state.best + row, best);
      store(state.second + row, second);
    }
  }
}

void summarize(PanelState state, PanelSummary summary) {
  for (int row = 0; row < kPanelRows; row += kLanes) {
    Floats best = broadcast(-__builtin_inff());
    Floats runner = best;
    Floats rest = best;
    for (int t = 0; t < kTrackers; ++t) {
      const Floats value = load(state.best + t * kPanelRows + row);
      assign_where_greater(value, best, t, summary.tracker + row);
      runner = maximum(runner, minimum(best, value));
      best = maximum(best, value);
      rest = maximum(rest, load(state.second + t * kPanelRows + row));
    }
    store(summary.runner + row, runner);
    store(summary.rest + row, rest);
  }
}

int64_t collect(const float* panel, int64_t words, const float* packed, const float* bias,
                int64_t blocks, int32_t first_group, const float* threshold, Suspect* out) {
  const ScoreSession session;
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    Scores scores;
    score_block(panel, words, packed + b * kBlockCodes * words, bias + b * kBlockCodes, scores);
    const int32_t id = first_group + static_cast<int32_t>(b) * kBlockGroups;
#pragma GCC unroll 4
    for (int g = 0; g < kBlockGroups; ++g) {
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v) {
        uint32_t lanes = lanes_at_least(group_score(scores, g, v), load(threshold + v * kLanes));
        for (; lanes != 0; lanes &= lanes - 1) {
          out[found++] = {v * kLanes + __builtin_ctz(lanes), id + g};
        }
      }
    }
  }
  return found;
}
