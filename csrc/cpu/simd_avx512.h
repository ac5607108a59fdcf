// SPDX-License-Identifier: Apache-2.0
// The vector vocabulary of the kernels in AVX-512. Included inside a target region and a namespace.

using Floats = __m512;
using Doubles = __m512d;

constexpr int kLanes = 16;
constexpr int kDoubleLanes = 8;

FASTVQ_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
FASTVQ_INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
FASTVQ_INLINE Floats broadcast(float v) { return _mm512_set1_ps(v); }
FASTVQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
FASTVQ_INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
FASTVQ_INLINE Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }

// ids[lane] = id where value > bound
FASTVQ_INLINE void assign_where_greater(Floats value, Floats bound, int32_t id, int32_t* ids) {
  const __mmask16 mask = _mm512_cmp_ps_mask(value, bound, _CMP_GT_OQ);
  _mm512_mask_storeu_epi32(ids, mask, _mm512_set1_epi32(id));
}

FASTVQ_INLINE uint32_t lanes_at_least(Floats value, Floats bound) {
  return _mm512_cmp_ps_mask(value, bound, _CMP_GE_OQ);
}

FASTVQ_INLINE Doubles load_doubles(const double* p) { return _mm512_loadu_pd(p); }
FASTVQ_INLINE Doubles load_doubles(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
FASTVQ_INLINE Doubles broadcast_double(double v) { return _mm512_set1_pd(v); }
FASTVQ_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return _mm512_fmadd_pd(a, b, c);
}
// c - a * b
FASTVQ_INLINE Doubles subtract_product(Doubles a, Doubles b, Doubles c) {
  return _mm512_fnmadd_pd(a, b, c);
}
FASTVQ_INLINE double sum(Doubles v) { return _mm512_reduce_add_pd(v); }
// The sums of four vectors, each in the same order.
FASTVQ_INLINE void sum_each(const Doubles (&v)[4], double (&out)[4]) {
  const __m512d a = _mm512_unpacklo_pd(v[0], v[1]) + _mm512_unpackhi_pd(v[0], v[1]);
  const __m512d b = _mm512_unpacklo_pd(v[2], v[3]) + _mm512_unpackhi_pd(v[2], v[3]);
  const __m512d c = _mm512_shuffle_f64x2(a, b, 0x44) + _mm512_shuffle_f64x2(a, b, 0xEE);
  const __m512d d = _mm512_shuffle_f64x2(c, c, 0x88) + _mm512_shuffle_f64x2(c, c, 0xDD);
  _mm256_storeu_pd(out, _mm512_castpd512_pd256(d));
}

// out[j][i] = in[i * stride + j]
FASTVQ_INLINE void transpose(const float* in, int64_t stride, Floats (&out)[kLanes]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(in + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xEE);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xDD);
    }
  }
  for (int j = 0; j < 8; ++j) {
    out[j] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88);
    out[j + 8] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0xDD);
  }
}
