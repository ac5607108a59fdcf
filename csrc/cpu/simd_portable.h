// SPDX-License-Identifier: Apache-2.0
// The vector vocabulary of the kernels in GCC and Clang's vector extensions: SSE2, NEON or scalars,
// whatever the baseline has. Included inside a namespace.

using Floats = float __attribute__((vector_size(16)));
using Doubles = double __attribute__((vector_size(16)));

constexpr int kLanes = 4;
constexpr int kDoubleLanes = 2;

template <class Vector, class T>
FASTVQ_INLINE Vector load_vector(const T* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

FASTVQ_INLINE Floats load(const float* p) { return load_vector<Floats>(p); }
FASTVQ_INLINE void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof(v)); }
FASTVQ_INLINE Floats broadcast(float v) { return Floats{v, v, v, v}; }
FASTVQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
FASTVQ_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
FASTVQ_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

// ids[lane] = id where value > bound
FASTVQ_INLINE void assign_where_greater(Floats value, Floats bound, int32_t id, int32_t* ids) {
  using Ints = int32_t __attribute__((vector_size(16)));
  const Ints greater = value > bound;
  const Ints merged = (greater & id) | (~greater & load_vector<Ints>(ids));
  __builtin_memcpy(ids, &merged, sizeof(merged));
}

FASTVQ_INLINE uint32_t lanes_at_least(Floats value, Floats bound) {
  const auto mask = value >= bound;
  return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}

FASTVQ_INLINE Doubles load_doubles(const double* p) { return load_vector<Doubles>(p); }
FASTVQ_INLINE Doubles load_doubles(const float* p) { return Doubles{p[0], p[1]}; }
FASTVQ_INLINE Doubles broadcast_double(double v) { return Doubles{v, v}; }
FASTVQ_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return a * b + c; }
// c - a * b
FASTVQ_INLINE Doubles subtract_product(Doubles a, Doubles b, Doubles c) { return c - a * b; }
FASTVQ_INLINE double sum(Doubles v) { return v[0] + v[1]; }
FASTVQ_INLINE void sum_each(const Doubles (&v)[4], double (&out)[4]) {
  for (int i = 0; i < 4; ++i) out[i] = sum(v[i]);
}

// out[j][i] = in[i * stride + j]
FASTVQ_INLINE void transpose(const float* in, int64_t stride, Floats (&out)[kLanes]) {
  for (int j = 0; j < kLanes; ++j) {
    out[j] = Floats{in[j], in[stride + j], in[2 * stride + j], in[3 * stride + j]};
  }
}
