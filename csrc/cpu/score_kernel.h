// SPDX-License-Identifier: Apache-2.0
// The fast pass on vector registers: the scores of a block of codes for a panel of rows stay there
// until they are compared. Included once for each product, inside its namespace and target region.

#include "register_block.h"

// score[code][row] = bias[code] + sum_w packed[w][code] * panel[w][row], one step after another
FASTVQ_INLINE void score_block(const float* panel, int64_t words, const float* packed,
                               const float* bias, Scores& score) {
#pragma GCC unroll 12
  for (int c = 0; c < kBlockCodes; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) score[c][v] = broadcast(bias[c]);
  }
  for (int64_t w = 0; w < words; ++w) {
    Floats row[kRowVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kRowVectors; ++v) row[v] = load(panel + v * kLanes);
#pragma GCC unroll 12
    for (int c = 0; c < kBlockCodes; ++c) {
      const Floats code = broadcast(packed[c]);
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v) {
        score[c][v] = add_product(row[v], code, score[c][v]);
      }
    }
    panel += kPanelRows;
    packed += kBlockCodes;
  }
}
