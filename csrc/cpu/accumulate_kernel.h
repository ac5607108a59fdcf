// SPDX-License-Identifier: Apache-2.0
// Sums of rows in float64. Included once for each instruction set, inside its namespace and target
// region. Every element is summed in the order of the rows, so all instruction sets agree.

constexpr int kSumVectors = 8;
constexpr int64_t kLineBytes = 64;

using Words = uint32_t __attribute__((vector_size(kDoubleLanes * 4)));
using Singles = float __attribute__((vector_size(kDoubleLanes * 4)));

FASTVQ_INLINE Words load_words(const void* p) {
  uint16_t narrow[kDoubleLanes];
  uint32_t wide[kDoubleLanes];
  __builtin_memcpy(narrow, p, sizeof(narrow));
  for (int i = 0; i < kDoubleLanes; ++i) wide[i] = narrow[i];
  Words words;
  __builtin_memcpy(&words, wide, sizeof(words));
  return words;
}

FASTVQ_INLINE Doubles widen(Words bits) {
  float singles[kDoubleLanes];
  __builtin_memcpy(singles, &bits, sizeof(singles));
  return load_doubles(static_cast<const float*>(singles));
}

FASTVQ_INLINE Doubles load_doubles(const c10::BFloat16* p) { return widen(load_words(p) << 16); }

FASTVQ_INLINE Doubles load_doubles(const c10::Half* p) {
  constexpr uint32_t bias = (127 - 15) << 23, top = 31u << 23, least = 1u << 23;
  const Words word = load_words(p);
  const Words size = (word & 0x7FFF) << 13;
  const Words infinite = (Words)(size >= top) & bias;
  // a subnormal is the distance from the least normal number, which needs no subnormal arithmetic
  const Singles origin = (Singles)(Words{} + (bias + least));
  const Words subnormal = (Words)((Singles)(size + (bias + least)) - origin);
  const Words small = (Words)(size < least);
  const Words value = (small & subnormal) | (~small & (size + bias + infinite));
  return widen(value | (word & 0x8000) << 16);
}

template <class T>
FASTVQ_INLINE void store_doubles(T* p, Doubles v) {
  if constexpr (sizeof(T) == sizeof(double)) {
    __builtin_memcpy(p, &v, sizeof(v));
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kDoubleLanes; ++i) p[i] = static_cast<T>(v[i]);
  }
}

// Sums columns [d, d + kVectors * kDoubleLanes); returns zeros where the sums are finite.
template <int kVectors, class X, class T, class Out>
FASTVQ_INLINE Doubles sum_block(const X* x, const int64_t* offsets, int64_t count, int64_t d,
                                const T* code, Out* out) {
  constexpr int64_t bytes = kVectors * kDoubleLanes * static_cast<int64_t>(sizeof(X));
  const Doubles zero = broadcast_double(0.0), rows = broadcast_double(static_cast<double>(count));
  Doubles origin[kVectors], total[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    total[v] = zero;
    origin[v] = code && count ? load_doubles(code + d + v * kDoubleLanes) : zero;
  }
  for (int64_t i = 0; i < count; ++i) {
    // the rows of a code lie anywhere, where no hardware would look ahead
    const char* later = reinterpret_cast<const char*>(x + offsets[i + kOffsetsAhead] + d);
#pragma GCC unroll 8
    for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(later + at, 0, 2);
    const X* row = x + offsets[i] + d;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Doubles value = load_doubles(row + v * kDoubleLanes);
      if constexpr (subtracts_each<T>()) value -= origin[v];
      total[v] += value;
    }
  }
  Doubles probe = zero;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (!subtracts_each<T>()) total[v] = subtract_product(rows, origin[v], total[v]);
    store_doubles(out + d + v * kDoubleLanes, total[v]);
    probe += total[v] * zero;
  }
  return probe;
}

template <class X, class T, class Out>
bool sum_rows(const X* x, const int64_t* offsets, int64_t count, int64_t depth, const T* code,
              Out* out) {
  constexpr int64_t block = kSumVectors * kDoubleLanes;
  Doubles probe = broadcast_double(0.0);
  int64_t d = 0;
  for (; d + block <= depth; d += block) {
    probe += sum_block<kSumVectors>(x, offsets, count, d, code, out);
  }
  for (; d + kDoubleLanes <= depth; d += kDoubleLanes) {
    probe += sum_block<1>(x, offsets, count, d, code, out);
  }
  double rest = sum(probe);
  for (; d < depth; ++d) {
    const double origin = code && count ? static_cast<double>(code[d]) : 0.0;
    double total = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const double value = static_cast<double>(x[offsets[i] + d]);
      total += subtracts_each<T>() ? value - origin : value;
    }
    if constexpr (!subtracts_each<T>()) total -= static_cast<double>(count) * origin;
    out[d] = static_cast<Out>(total);
    rest += total * 0.0;
  }
  return rest == 0.0;
}

// table[codes[i]][d] += rows[i][d] where codes[i] is not negative
template <class T>
void scatter(const T* rows, const int64_t* codes, int64_t count, int64_t depth, double* table) {
  const int64_t whole = depth / kDoubleLanes * kDoubleLanes;
  for (int64_t i = 0; i < count; ++i) {
    if (codes[i] < 0) continue;
    const T* row = rows + i * depth;
    double* total = table + codes[i] * depth;
    for (int64_t d = 0; d < whole; d += kDoubleLanes) {
      store_doubles(total + d, load_doubles(total + d) + load_doubles(row + d));
    }
    for (int64_t d = whole; d < depth; ++d) total[d] += static_cast<double>(row[d]);
  }
}
