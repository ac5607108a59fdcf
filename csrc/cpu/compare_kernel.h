// SPDX-License-Identifier: Apache-2.0
// The exact pass: float64 distances by direct differences, one row against four codes at a time.
// Included once for each instruction set, inside its namespace and target region.

template <class T>
Measure measure(const T* row, double scale, const double* centre, int64_t depth) {
  Doubles norms = broadcast_double(0.0);
  Doubles squares = norms;
  Doubles dots = norms;
  const Doubles factor = broadcast_double(scale);
  for (int64_t d = 0; d < depth; d += kDoubleLanes) {
    const Doubles x = load_doubles(row + d) * factor;
    const Doubles c = load_doubles(centre + d);
    const Doubles difference = x - c;
    norms = multiply_add(x, x, norms);
    squares = multiply_add(difference, difference, squares);
    dots = multiply_add(x, c, dots);
  }
  return {sum(norms), sum(squares), sum(dots)};
}

// total[d] += sum over the rows of weights[row] * rows[row][d]; a row of weight 0 is not read
template <class T>
void weighted_sum(const T* rows, int64_t stride, int64_t count, int64_t depth,
                  const double* weights, double* total) {
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] == 0.0) continue;
    const Doubles weight = broadcast_double(weights[i]);
    for (int64_t d = 0; d < depth; d += kDoubleLanes) {
      const Doubles sums = multiply_add(load_doubles(rows + i * stride + d), weight,
                                        load_doubles(total + d));
      __builtin_memcpy(total + d, &sums, sizeof(sums));
    }
  }
}

template <class T>
uint64_t hash(const T* row, const uint32_t* weights, int64_t depth) {
  uint64_t total = 0;
  for (int64_t d = 0; d < depth; ++d) {
    // adding zero makes the two zeros one
    const T value = row[d] + T(0);
    uint32_t words[sizeof(T) / 4];
    __builtin_memcpy(words, &value, sizeof(value));
    uint32_t bits = words[0];
    if constexpr (sizeof(T) == 8) bits ^= words[1] * 0x9E3779B1u;
    total += static_cast<uint64_t>(bits) * weights[d];
  }
  return total;
}

// Every code is summed in the same order wherever it stands, so equal codes tie exactly.
template <bool kDot, class T>
FASTVQ_INLINE void compare_group(const T* row, Doubles row_scale, const CodeView<T>& codes,
                                 int64_t begin, int64_t end, Candidate* best) {
  const T* code[kGroupCodes];
  Doubles scale[kGroupCodes];
  Doubles total[kGroupCodes];
#pragma GCC unroll 4
  for (int c = 0; c < kGroupCodes; ++c) {
    const int64_t k = begin + c < end ? begin + c : end - 1;
    code[c] = codes.values + k * codes.stride;
    scale[c] = broadcast_double(codes.scale[k]);
    total[c] = broadcast_double(0.0);
  }
  for (int64_t d = 0; d < codes.depth; d += kDoubleLanes) {
    const Doubles x = load_doubles(row + d) * row_scale;
#pragma GCC unroll 4
    for (int c = 0; c < kGroupCodes; ++c) {
      const Doubles value = load_doubles(code[c] + d);
      if constexpr (kDot) {
        total[c] = subtract_product(value, x, total[c]);
      } else {
        const Doubles difference = subtract_product(value, scale[c], x);
        total[c] = multiply_add(difference, difference, total[c]);
      }
    }
  }
  double sums[kGroupCodes];
  sum_each(total, sums);
#pragma GCC unroll 4
  for (int c = 0; c < kGroupCodes; ++c) {
    if (begin + c >= end) break;
    const double value = sums[c] + codes.offset[begin + c];
    if (value < best->value) *best = {value, begin + c};
  }
}

template <class T>
void compare(const T* row, double row_scale, const CodeView<T>& codes, bool dot, int64_t begin,
             int64_t end, Candidate* best) {
  const Doubles scale = broadcast_double(row_scale);
  for (int64_t k = begin; k < end; k += kGroupCodes) {
    if (dot) {
      compare_group<true>(row, scale, codes, k, end, best);
    } else {
      compare_group<false>(row, scale, codes, k, end, best);
    }
  }
}
