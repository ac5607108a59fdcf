// SPDX-License-Identifier: Apache-2.0
// The softmax over the codes, a block of pairs at a time. Included once for each instruction set,
// inside its namespace and target region. Pairs lie on the lanes by the side that is looped over;
// the order of every sum follows from the block and the lanes alone.

template <class T>
struct SoftmaxLanes;

template <>
struct SoftmaxLanes<float> {
  using Bits = int32_t;
  using Vector = float __attribute__((vector_size(kLanes * 4)));
  using Integers = int32_t __attribute__((vector_size(kLanes * 4)));
};

template <>
struct SoftmaxLanes<double> {
  using Bits = int64_t;
  using Vector = double __attribute__((vector_size(kLanes * 4)));
  using Integers = int64_t __attribute__((vector_size(kLanes * 4)));
};

template <class T>
struct Softmax {
  static constexpr int kWidth = kLanes * 4 / static_cast<int>(sizeof(T));
  // with four owners twelve sums, as many as hide the latency of a multiplication in 16 registers
  static constexpr int kVectors = 3;
  static constexpr int kPanel = kVectors * kWidth;
  using Bits = typename SoftmaxLanes<T>::Bits;
  using Vector = typename SoftmaxLanes<T>::Vector;
  using Integers = typename SoftmaxLanes<T>::Integers;

  static FASTVQ_INLINE Vector at(const T* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static FASTVQ_INLINE void put(T* p, Vector v) { __builtin_memcpy(p, &v, sizeof(v)); }
  // less 0 is the value itself for either zero, which plus 0 is not: one instruction, not two
  static FASTVQ_INLINE Vector all(T value) { return value - Vector{}; }

  static FASTVQ_INLINE T sum(Vector v) {
    T total = 0;
    for (int i = 0; i < kWidth; ++i) total += v[i];
    return total;
  }

  // e^x for x not far above 0, within 2 units; 0 below the normal numbers, NaN for NaN.
  static FASTVQ_INLINE Vector exp(Vector x) {
    constexpr bool wide = sizeof(T) == 8;
    // adding this rounds to an integer, which is then in the low bits
    constexpr T magic = wide ? T(6755399441055744.0) : T(12582912.0);
    constexpr T least = wide ? T(-708.0) : T(-87.0);
    constexpr T high = wide ? T(0x1.62e42feep-1) : T(0x1.62e4p-1);
    constexpr T low = wide ? T(0x1.a39ef35793c76p-33) : T(0x1.7f7d1cp-20);
    constexpr int terms = wide ? 13 : 7, mantissa = wide ? 52 : 23;
    constexpr Bits exponent_bias = wide ? 1023 : 127;
    const Integers nothing = x < all(least);
    const Vector clamped = nothing ? all(least) : x;
    const Vector shifted = clamped * T(1.4426950408889634) + magic;
    const Vector n = shifted - magic;
    const Vector r = (clamped - n * high) - n * low;
    T factor = 1;
    for (int i = 2; i <= terms; ++i) factor /= T(i);
    Vector series = all(factor);
    for (int i = terms; i >= 1; --i) {
      factor *= T(i);
      series = series * r + factor;
    }
    const Integers power = (Integers)shifted - (Integers)all(magic) + exponent_bias;
    const Vector result = series * (Vector)(power << mantissa);
    return nothing ? Vector{} : result;
  }

  // out[r * stride + j] = scale * |owner_r - other_j|^2, or scale * the dot product, for four
  // owners and `panels` panels of others, packed[panel][d][other].
  static void products(const T* const (&owners)[4], const T* packed, int64_t panels, int64_t depth,
                       bool dot, T scale, T* out, int64_t stride) {
    if (dot) {
      measure<true>(owners, packed, panels, depth, scale, out, stride);
    } else {
      measure<false>(owners, packed, panels, depth, scale, out, stride);
    }
  }

  template <bool kDot>
  static FASTVQ_INLINE void measure(const T* const (&owners)[4], const T* packed, int64_t panels,
                                    int64_t depth, T scale, T* out, int64_t stride) {
    for (int64_t p = 0; p < panels; ++p, packed += depth * kPanel, out += kPanel) {
      Vector total[4][kVectors] = {};
      for (int64_t d = 0; d < depth; ++d) {
        Vector other[kVectors];
        for (int v = 0; v < kVectors; ++v) other[v] = at(packed + d * kPanel + v * kWidth);
        for (int r = 0; r < 4; ++r) {
          const Vector own = all(owners[r][d]);
          for (int v = 0; v < kVectors; ++v) {
            const Vector difference = own - other[v];
            total[r][v] += kDot ? own * other[v] : difference * difference;
          }
        }
      }
      for (int r = 0; r < 4; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          put(out + r * stride + v * kWidth, total[r][v] * scale);
        }
      }
    }
  }

  static FASTVQ_INLINE T largest(const T* logits, int64_t count) {
    Vector most = at(logits);
    for (int64_t j = kWidth; j < count; j += kWidth) {
      const Vector l = at(logits + j);
      // what is not a number stays
      most = (l > most) | (l != l) ? l : most;
    }
    T top = most[0];
    for (int i = 1; i < kWidth; ++i) top = most[i] > top || most[i] != most[i] ? most[i] : top;
    return top;
  }

  // Takes a block of logits, a bias to be added, into the running maximum and sums of a row.
  static void absorb(T* logits, const T* bias, int64_t count, SoftmaxRow<T>& row) {
    for (int64_t j = 0; j < count; j += kWidth) put(logits + j, at(logits + j) + at(bias + j));
    const T top = largest(logits, count);
    if (top == -std::numeric_limits<T>::infinity()) return;
    if (!(top <= row.maximum)) {
      const double rise = static_cast<double>(row.maximum) - static_cast<double>(top);
      if (row.sum > 0) {
        const double kept = std::exp(rise);
        row.moment = kept > 0 ? kept * (row.moment + rise * row.sum) : 0;
        row.sum *= kept;
      }
      row.maximum = top;
    }
    Vector sums{}, moments{};
    for (int64_t j = 0; j < count; j += kWidth) {
      const Vector shifted = at(logits + j) - row.maximum;
      const Vector chance = exp(shifted);
      sums += chance;
      moments += chance == Vector{} ? Vector{} : chance * shifted;
    }
    row.sum += static_cast<double>(sum(sums));
    row.moment += static_cast<double>(sum(moments));
  }

  // Turns a block of logits into p phi, and returns its sum. What belongs to the rows is on the
  // lanes or, for the block of one row, the same for all.
  static T weigh(T* logits, int64_t count, const SoftmaxTerms<T>& terms) {
    return terms.rows_on_lanes ? weigh_as<true>(logits, count, terms)
                               : weigh_as<false>(logits, count, terms);
  }

  template <bool kOnLanes>
  static FASTVQ_INLINE Vector part(const T* p, int64_t j) {
    return kOnLanes ? at(p + j) : all(*p);
  }

  template <bool kRowsOnLanes>
  static FASTVQ_INLINE T weigh_as(T* logits, int64_t count, const SoftmaxTerms<T>& terms) {
    constexpr bool kCodesOnLanes = !kRowsOnLanes;
    Vector total{};
    for (int64_t j = 0; j < count; j += kWidth) {
      const Vector logit = at(logits + j) + part<kCodesOnLanes>(terms.bias, j);
      const Vector top = part<kRowsOnLanes>(terms.maximum, j);
      const Vector logarithm = (logit - top) - part<kRowsOnLanes>(terms.log_sum, j);
      const Vector chance = exp(logarithm);
      const Vector slope = part<kRowsOnLanes>(terms.log_factor, j);
      Vector phi = slope * logarithm + part<kRowsOnLanes>(terms.factor, j);
      if (terms.code_factor != nullptr) {
        phi += part<kRowsOnLanes>(terms.weight, j) * part<kCodesOnLanes>(terms.code_factor, j);
      }
      if (terms.direction != nullptr) phi += at(terms.direction + j);
      const Vector term = chance == Vector{} ? Vector{} : chance * phi;
      put(logits + j, term);
      total += term;
    }
    return sum(total);
  }

  // totals[r][c] = the sum over j < count of terms[r * stride + j] * values[c][j]; the channels are a
  // multiple of the vector's width and come a panel after another, values[panel][j][channel].
  static void spread(const T* terms, int64_t stride, const T* values, int64_t count,
                     int64_t channels, T* totals) {
    int64_t c = 0;
    for (; c + kPanel <= channels; c += kPanel) {
      spread_into<kVectors>(terms, stride, values + c * count, count, channels, totals + c);
    }
    if (c + 2 * kWidth == channels) {
      spread_into<2>(terms, stride, values + c * count, count, channels, totals + c);
    } else if (c < channels) {
      spread_into<1>(terms, stride, values + c * count, count, channels, totals + c);
    }
  }

  template <int kSome>
  static FASTVQ_INLINE void spread_into(const T* terms, int64_t stride, const T* values,
                                        int64_t count, int64_t channels, T* totals) {
    Vector total[4][kSome] = {};
    for (int64_t j = 0; j < count; ++j, values += kSome * kWidth) {
      Vector value[kSome];
      for (int v = 0; v < kSome; ++v) value[v] = at(values + v * kWidth);
      for (int r = 0; r < 4; ++r) {
        const Vector term = all(terms[r * stride + j]);
        for (int v = 0; v < kSome; ++v) total[r][v] += term * value[v];
      }
    }
    for (int r = 0; r < 4; ++r) {
      for (int v = 0; v < kSome; ++v) put(totals + r * channels + v * kWidth, total[r][v]);
    }
  }

  // Adds bias and noise to a block of logits and returns the largest.
  static T perturb(T* logits, const T* bias, int64_t count, uint32_t first_code, uint32_t key,
                   uint32_t other_key) {
    for (int64_t j = 0; j < count; j += kWidth) {
      Vector noise;
      if constexpr (sizeof(T) == 4) {
        noise = gumbel(first_code + static_cast<uint32_t>(j), key, other_key);
      } else {
        for (int i = 0; i < kWidth; ++i) {
          const double bits = noise_bits(first_code + static_cast<uint32_t>(j + i), key, other_key);
          noise[i] = -std::log(-std::log1p(-(bits + 0.5) * 0x1p-32));
        }
      }
      put(logits + j, at(logits + j) + at(bias + j) + noise);
    }
    return largest(logits, count);
  }

  using Words = uint32_t __attribute__((vector_size(kLanes * 4)));

  template <class Word>
  static FASTVQ_INLINE Word mix(Word word) {
    word ^= word >> 16;
    word *= 0x85EBCA6Bu;
    word ^= word >> 13;
    word *= 0xC2B2AE35u;
    return word ^ (word >> 16);
  }

  template <class Word>
  static FASTVQ_INLINE Word noise_bits(Word code, uint32_t key, uint32_t other_key) {
    return mix<Word>(mix<Word>(code + key) ^ other_key);
  }

  // The noise of as many codes as there are lanes; its definition is at the reference.
  static FASTVQ_INLINE Vector gumbel(uint32_t first_code, uint32_t key, uint32_t other_key)
    requires(sizeof(T) == 4)
  {
    Words codes;
    for (int i = 0; i < kWidth; ++i) codes[i] = first_code + static_cast<uint32_t>(i);
    const Words bits = noise_bits<Words>(codes, key, other_key);
    const Vector small = singles(bits) * 0x1p-32f + 0x1p-33f;
    const Vector large = singles(~bits) * 0x1p-32f + 0x1p-33f;  // 1 - small
    Vector logarithm = log(large);
    // what rounding took from 1 - small
    const Vector lost = ((1.0f - large) - small) / large;
    logarithm += small < all(0.5f) ? lost : Vector{};
    return -log(-logarithm);
  }

  // Two exact halves: not every instruction set converts unsigned words.
  static FASTVQ_INLINE Vector singles(Words words) {
    const Vector high = __builtin_convertvector((Integers)(words >> 16), Vector);
    const Vector low = __builtin_convertvector((Integers)(words & 0xFFFFu), Vector);
    return high * 65536.0f + low;
  }

  // log x for normal x > 0, within 2 units near 1 too.
  static FASTVQ_INLINE Vector log(Vector x) {
    constexpr int32_t half_root = 0x3F3504F3;  // the square root of 1 / 2
    const Integers bits = (Integers)x + (0x3F800000 - half_root);
    const Vector exponent = __builtin_convertvector((bits >> 23) - 127, Vector);
    const Vector f = (Vector)((bits & 0x7FFFFF) + half_root) - 1.0f;
    const Vector s = f / (2.0f + f), z = s * s;
    // log(1 + f) = 2 atanh(s), less what is exact of it
    const Vector series = z * (z * (z * (z * (2.0f / 9) + 2.0f / 7) + 2.0f / 5) + 2.0f / 3);
    const Vector half = 0.5f * f * f;
    const Vector rest = s * (half + series) + exponent * 0x1.7f7d1cp-20f;
    return exponent * 0x1.62e4p-1f + (f - (half - rest));
  }
};

template <class T>
static constexpr SoftmaxKernels<T> softmax_table() {
  using S = Softmax<T>;
  static_assert(kBlock % S::kPanel == 0);
  return {S::kPanel, S::kWidth, S::products, S::absorb, S::weigh, S::spread, S::perturb};
}
