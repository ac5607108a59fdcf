// SPDX-License-Identifier: Apache-2.0
// A block of codes against a panel of rows whose scores stay in vector registers: its sizes, and
// where the words of a code lie, packed[word][code]. Included inside a namespace.

constexpr int kPanelRows = kRowVectors * kLanes;

using Scores = Floats[kBlockCodes][kRowVectors];

struct ScoreSession {
  // registers need no setting up; a constructor keeps the object from counting as unused
  ScoreSession() {}
};

FASTVQ_INLINE void store_code_words(const float* words, int64_t count, int code, float* packed) {
  for (int64_t w = 0; w < count; ++w) packed[w * kBlockCodes + code] = words[w];
}
FASTVQ_INLINE float* code_words(float* block, int64_t w) { return block + w * kBlockCodes; }
