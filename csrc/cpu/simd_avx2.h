// SPDX-License-Identifier: Apache-2.0
// The vector vocabulary of the kernels in AVX2. Included inside a target region and a namespace.

using Floats = __m256;
using Doubles = __m256d;

constexpr int kLanes = 8;
constexpr int kDoubleLanes = 4;

FASTVQ_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
FASTVQ_INLINE void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
FASTVQ_INLINE Floats broadcast(float v) { return _mm256_set1_ps(v); }
FASTVQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
FASTVQ_INLINE Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
FASTVQ_INLINE Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }

// ids[lane] = id where value > bound. A blend, as masked stores are slow outside of AVX-512.
FASTVQ_INLINE void assign_where_greater(Floats value, Floats bound, int32_t id, int32_t* ids) {
  const __m256 mask = _mm256_cmp_ps(value, bound, _CMP_GT_OQ);
  const __m256i old = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ids));
  const __m256i chosen = _mm256_blendv_epi8(old, _mm256_set1_epi32(id), _mm256_castps_si256(mask));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(ids), chosen);
}

FASTVQ_INLINE uint32_t lanes_at_least(Floats value, Floats bound) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(value, bound, _CMP_GE_OQ)));
}

FASTVQ_INLINE Doubles load_doubles(const double* p) { return _mm256_loadu_pd(p); }
FASTVQ_INLINE Doubles load_doubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
FASTVQ_INLINE Doubles broadcast_double(double v) { return _mm256_set1_pd(v); }
FASTVQ_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return _mm256_fmadd_pd(a, b, c);
}
// c - a * b
FASTVQ_INLINE Doubles subtract_product(Doubles a, Doubles b, Doubles c) {
  return _mm256_fnmadd_pd(a, b, c);
}
FASTVQ_INLINE double sum(Doubles v) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}
// The sums of four vectors, each in the same order.
FASTVQ_INLINE void sum_each(const Doubles (&v)[4], double (&out)[4]) {
  const __m256d a = _mm256_hadd_pd(v[0], v[1]);
  const __m256d b = _mm256_hadd_pd(v[2], v[3]);
  _mm256_storeu_pd(out, _mm256_permute2f128_pd(a, b, 0x20) + _mm256_permute2f128_pd(a, b, 0x31));
}

// out[j][i] = in[i * stride + j]
FASTVQ_INLINE void transpose(const float* in, int64_t stride, Floats (&out)[kLanes]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in + i * stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xEE);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
  }
  for (int j = 0; j < 4; ++j) {
    out[j] = _mm256_permute2f128_ps(a[j], a[j + 4], 0x20);
    out[j + 4] = _mm256_permute2f128_ps(a[j], a[j + 4], 0x31);
  }
}
