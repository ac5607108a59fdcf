// SPDX-License-Identifier: Apache-2.0
// Scores by products of 16-bit integers: a word is two elements, the lower one in the lower half.
// Rows and codes are scaled, each by its own length, so that no sum of products leaves 32 bits;
// integer sums are exact. Included inside a namespace and target region.

constexpr int kWordElements = 2;
constexpr int64_t kWordMultiple = 1;
constexpr int64_t kScaleWords = 1;

// The length that integers are scaled to, so that theirs stays under 2^15: no element is larger, and
// by Cauchy-Schwarz no sum of products is over 2^30. Rounding moves each element by a half at most,
// which adds sqrt(D) / 2; lengths and elements are off by less than the slack.
FASTVQ_INLINE float longest(int64_t depth) {
  constexpr float kSlack = 1.0f - 0x1p-16f;
  return (32766.0f - 0.5f * __builtin_sqrtf(static_cast<float>(depth))) * kSlack;
}
// Lengths under 2^-85 would need more: their integers are small or 0, and the loss says so.
constexpr float kLargestScale = 0x1p100f;

// Integers of eight rows, n = round(scale * x); they stand for inverse * n.
class RowFormat {
 public:
  FASTVQ_INLINE RowFormat(Floats length, int64_t depth)
      : scale_(minimum(broadcast(longest(depth)) / length, broadcast(kLargestScale))),
        inverse_(broadcast(1.0f) / scale_) {}
  FASTVQ_INLINE void store_scale(float* out) const { store(out, inverse_); }

  FASTVQ_INLINE Ints rounded(Floats x, Floats& lost) const {
    const Ints n = round_to_int(x * scale_);
    const Floats difference = subtract_product(to_floats(n), inverse_, x);
    lost = multiply_add(difference, difference, lost);
    return n;
  }

 private:
  Floats scale_, inverse_;
};

class CodeFormat {
 public:
  FASTVQ_INLINE CodeFormat(double length, int64_t depth) {
    const double wanted = static_cast<double>(longest(depth)) / length;
    scale_ = wanted < kLargestScale ? static_cast<float>(wanted) : kLargestScale;
    inverse_ = 1.0f / scale_;
  }
  FASTVQ_INLINE void store_scale(float* out) const { *out = inverse_; }

  FASTVQ_INLINE int32_t rounded(float x, double& lost) const {
    const float n = __builtin_nearbyintf(x * scale_);
    const double difference = static_cast<double>(x) - static_cast<double>(n) * inverse_;
    lost += difference * difference;
    return static_cast<int32_t>(n);
  }

 private:
  float scale_, inverse_;
};

FASTVQ_INLINE Floats word(const Floats* elements, const RowFormat& format, Floats& lost) {
  const Ints low = format.rounded(elements[0], lost);
  const Ints high = format.rounded(elements[1], lost);
  return floats_of(joined_halves(low, high));
}

FASTVQ_INLINE double words_of_code(const float* elements, const CodeFormat& format, float* words) {
  double lost = 0.0;
  for (int i = 0; i < kLanes; ++i) {
    const int32_t low = format.rounded(elements[2 * i], lost);
    const int32_t high = format.rounded(elements[2 * i + 1], lost);
    const uint32_t low_half = static_cast<uint32_t>(low) & 0xFFFFu;
    const uint32_t joined = static_cast<uint32_t>(high) << 16 | low_half;
    __builtin_memcpy(words + i, &joined, sizeof(joined));
  }
  return lost;
}
