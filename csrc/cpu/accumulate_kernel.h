// SPDX-License-Identifier: Apache-2.0
// Sums of rows in float64. Included once for each instruction set, inside its namespace and target
// region.

template <class T>
void accumulate(const T* rows, int64_t stride, int64_t count, int64_t depth, const T* code,
                double* total) {
  const int64_t whole = depth / kDoubleLanes * kDoubleLanes;
  for (int64_t d = 0; d < whole; d += kDoubleLanes) {
    Doubles sums = load_doubles(total + d);
    const Doubles origin = code ? load_doubles(code + d) : broadcast_double(0.0);
    for (int64_t i = 0; i < count; ++i) sums += load_doubles(rows + i * stride + d) - origin;
    __builtin_memcpy(total + d, &sums, sizeof(sums));
  }
  for (int64_t d = whole; d < depth; ++d) {
    const double origin = code ? static_cast<double>(code[d]) : 0.0;
    for (int64_t i = 0; i < count; ++i) total[d] += rows[i * stride + d] - origin;
  }
}
