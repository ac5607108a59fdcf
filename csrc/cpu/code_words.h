// SPDX-License-Identifier: Apache-2.0
// Where the words of a code lie in its block: packed[word][code]. Included inside a namespace.

FASTVQ_INLINE void store_code_words(const float* words, int64_t count, int code, float* packed) {
  for (int64_t w = 0; w < count; ++w) packed[w * kBlockCodes + code] = words[w];
}
FASTVQ_INLINE float* code_words(float* block, int64_t w) { return block + w * kBlockCodes; }
