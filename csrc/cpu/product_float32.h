// SPDX-License-Identifier: Apache-2.0
// Scores by float32 products: a word is one element. Included inside a namespace and target region.

constexpr int kWordElements = 1;
constexpr int64_t kWordMultiple = 1;
#include "unscaled.h"

// Loses nothing.
FASTVQ_INLINE Floats word(const Floats* elements, const RowFormat&, Floats&) {
  return elements[0];
}

FASTVQ_INLINE double words_of_code(const float* elements, const CodeFormat&, float* words) {
  for (int i = 0; i < kLanes; ++i) words[i] = elements[i];
  return 0.0;
}

FASTVQ_INLINE Floats add_product(Floats row, Floats code, Floats total) {
  return multiply_add(row, code, total);
}
