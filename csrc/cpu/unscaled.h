// SPDX-License-Identifier: Apache-2.0
// The format of products whose words hold elements as they are. Included inside a namespace.

constexpr int64_t kScaleWords = 0;

struct RowFormat {
  FASTVQ_INLINE RowFormat(Floats, int64_t) {}
  FASTVQ_INLINE void store_scale(float*) const {}
};

struct CodeFormat {
  FASTVQ_INLINE CodeFormat(double, int64_t) {}
  FASTVQ_INLINE void store_scale(float*) const {}
};
