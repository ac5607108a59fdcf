// SPDX-License-Identifier: Apache-2.0
// Scores by products of 16-bit integers: a word is two elements, the lower one in the lower half.
// Rows and codes are scaled, each by its own length, so that no sum of products leaves 32 bits;
// integer sums are exact. Included inside a namespace and target region.

constexpr int kWordElements = 2;
constexpr int64_t kWordMultiple = 1;
constexpr int64_t kScaleWords = 1;

// The length that integers are scaled to: by Cauchy-Schwarz every sum of products then stays under
// 2^30, and every element under 2^15. Rounding an element moves it by a half at most, and float32
// and float64 lengths are off by less than the slack.
FASTVQ_INLINE float longest(int64_t depth) {
  constexpr float kSlack = 1.0f - 0x1p-16f;
  return (32766.0f - 0.5f * __builtin_sqrtf(static_cast<float>(depth))) * kSlack;
}
// Where lengths are shorter than this allows, integers are small or 0; all that is lost is counted.
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
    const uint32_t joined = static_cast<uint32_t>(high) << 16 | (static_cast<uint32_t>(low) & 0xFFFFu);
    __builtin_memcpy(words + i, &joined, sizeof(joined));
  }
  return lost;
}
