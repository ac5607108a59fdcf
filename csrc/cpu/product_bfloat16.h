// SPDX-License-Identifier: Apache-2.0
// Scores by bfloat16 products with float32 sums: a word is two elements, the lower one in the lower
// half. Included inside a namespace and target region.

constexpr int kWordElements = 2;
#include "unscaled.h"

FASTVQ_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

FASTVQ_INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// To nearest, ties to even. What is not finite may become anything: such rows have no search.
FASTVQ_INLINE float round_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  return float_of((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}

FASTVQ_INLINE Floats round_bfloat16(Floats value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-0x10000)));
}

// Adds the squares of what rounding took to `lost`.
FASTVQ_INLINE Floats word(const Floats* elements, const RowFormat&, Floats& lost) {
  const Floats low = round_bfloat16(elements[0]);
  const Floats high = round_bfloat16(elements[1]);
  const Floats low_lost = elements[0] - low;
  const Floats high_lost = elements[1] - high;
  lost = multiply_add(low_lost, low_lost, multiply_add(high_lost, high_lost, lost));
  return _mm512_castsi512_ps(_mm512_or_si512(
      _mm512_srli_epi32(_mm512_castps_si512(low), 16), _mm512_castps_si512(high)));
}

// Returns the sum of the squares of what rounding took.
FASTVQ_INLINE double words_of_code(const float* elements, const CodeFormat&, float* words) {
  double lost = 0.0;
  for (int i = 0; i < kLanes; ++i) {
    uint32_t halves[2];
    for (int j = 0; j < 2; ++j) {
      const float value = elements[2 * i + j];
      const float rounded = round_bfloat16(value);
      const double difference = static_cast<double>(value) - static_cast<double>(rounded);
      lost += difference * difference;
      halves[j] = bits_of(rounded);
    }
    words[i] = float_of(halves[1] | (halves[0] >> 16));
  }
  return lost;
}
