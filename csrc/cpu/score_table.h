// SPDX-License-Identifier: Apache-2.0
// Collects the score kernels of one product, by the namespace that holds them.
#pragma once

#define FASTVQ_SCORE_TABLE(product)                                       \
  {.panel_rows = product::kPanelRows, .block_codes = product::kBlockCodes, \
   .word_elements = product::kWordElements,                               \
   .word_multiple = product::kWordMultiple,                               \
   .scale_words = product::kScaleWords,                                   \
   .pack_rows = product::pack_rows, .pack_codes = product::pack_codes,    \
   .score = product::score, .summarize = product::summarize,              \
   .collect = product::collect}
