// SPDX-License-Identifier: Apache-2.0
// The fast pass: float32 scores of a panel of rows against packed codes, kept in registers and
// reduced at once. Included once for each instruction set, inside its namespace and target region.

constexpr int kPanelRows = kRowVectors * kLanes;
constexpr int kBlockGroups = kBlockCodes / kGroupCodes;

using Scores = Floats[kBlockCodes][kRowVectors];

// score[code][row] = bias[code] + sum_d packed[d][code] * panel[d][row], one fused step after another
FASTVQ_INLINE void score_block(const float* panel, int64_t depth, const float* packed,
                               const float* bias, Scores& score) {
#pragma GCC unroll 12
  for (int c = 0; c < kBlockCodes; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) score[c][v] = broadcast(bias[c]);
  }
  for (int64_t d = 0; d < depth; ++d) {
    Floats row[kRowVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) row[v] = load(panel + v * kLanes);
#pragma GCC unroll 12
    for (int c = 0; c < kBlockCodes; ++c) {
      const Floats code = broadcast(packed[c]);
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v) {
        score[c][v] = multiply_add(row[v], code, score[c][v]);
      }
    }
    panel += kPanelRows;
    packed += kBlockCodes;
  }
}

FASTVQ_INLINE Floats group_score(const Scores& score, int group, int v) {
  const int c = group * static_cast<int>(kGroupCodes);
  return maximum(maximum(score[c][v], score[c + 1][v]), maximum(score[c + 2][v], score[c + 3][v]));
}

void score(const float* panel, int64_t depth, const float* packed, const float* bias,
           int64_t blocks, int32_t first_group, PanelState state) {
  for (int64_t b = 0; b < blocks; ++b) {
    Scores scores;
    score_block(panel, depth, packed + b * kBlockCodes * depth, bias + b * kBlockCodes, scores);
    const int32_t id = first_group + static_cast<int32_t>(b) * kBlockGroups;
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) {
      Floats best = load(state.best + v * kLanes);
      Floats second = load(state.second + v * kLanes);
#pragma GCC unroll 4
      for (int g = 0; g < kBlockGroups; ++g) {
        const Floats value = group_score(scores, g, v);
        assign_where_greater(value, best, id + g, state.group + v * kLanes);
        second = maximum(second, minimum(best, value));
        best = maximum(best, value);
      }
      store(state.best + v * kLanes, best);
      store(state.second + v * kLanes, second);
    }
  }
}

int64_t collect(const float* panel, int64_t depth, const float* packed, const float* bias,
                int64_t blocks, int32_t first_group, const float* threshold, Suspect* out) {
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    Scores scores;
    score_block(panel, depth, packed + b * kBlockCodes * depth, bias + b * kBlockCodes, scores);
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
