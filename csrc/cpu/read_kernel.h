// SPDX-License-Identifier: Apache-2.0
// Reading rows of any strides and element type.
// Included once for each instruction set, inside its namespace and target region.

// A square block of channels-first rows: its columns are contiguous, so it is turned on the way.
template <class Element>
FASTVQ_INLINE void read_block(const Element* source, int64_t depth_stride, float* out,
                              int64_t stride) {
  float columns[kLanes * kLanes];
  for (int d = 0; d < kLanes; ++d) {
    for (int i = 0; i < kLanes; ++i) {
      columns[d * kLanes + i] = static_cast<float>(source[d * depth_stride + i]);
    }
  }
  Floats turned[kLanes];
  transpose(columns, kLanes, turned);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(out + i * stride, turned[i]);
}

template <class Element, class T>
void read_row(const Element* source, int64_t depth_stride, int64_t depth, T* out, int64_t stride) {
  if (depth_stride == 1) {
    for (int64_t d = 0; d < depth; ++d) out[d] = static_cast<T>(source[d]);
  } else {
    for (int64_t d = 0; d < depth; ++d) out[d] = static_cast<T>(source[d * depth_stride]);
  }
  for (int64_t d = depth; d < stride; ++d) out[d] = T(0);
}

// Rows that lie side by side in memory (unit stride along the length); `stride` covers the depth.
template <class Element, class T>
void read_columns(const Element* source, const Rows& rows, int64_t count, T* out, int64_t stride) {
  const int64_t full_rows = count / kLanes * kLanes;
  const int64_t full_depth = rows.depth / kLanes * kLanes;
  for (int64_t i = 0; i < count; ++i) {
    const bool blocked = std::is_same_v<T, float> && i < full_rows;
    if (blocked && i % kLanes == 0) {
      for (int64_t d = 0; d < full_depth; d += kLanes) {
        if constexpr (std::is_same_v<T, float>) {
          read_block(source + i + d * rows.depth_stride, rows.depth_stride, out + i * stride + d,
                     stride);
        }
      }
    }
    const int64_t done = blocked ? full_depth : 0;
    read_row(source + i + done * rows.depth_stride, rows.depth_stride, rows.depth - done,
             out + i * stride + done, stride - done);
  }
}

template <class Element, class T>
void read_elements(const RowSet& set, T* out, int64_t stride) {
  const Rows& rows = *set.rows;
  const Element* data = static_cast<const Element*>(rows.data);
  for (int64_t i = 0; i < set.count;) {
    const int64_t row = set.ids ? set.ids[i] : set.first + i;
    const Element* source = data + rows.offset(row, set.head);
    int64_t count = 1;
    if (!set.ids && rows.length_stride == 1 && rows.depth_stride != 1) {
      const int64_t rest = rows.length - row % rows.length;
      count = rest < set.count - i ? rest : set.count - i;
      read_columns(source, rows, count, out + i * stride, stride);
    } else {
      read_row(source, rows.depth_stride, rows.depth, out + i * stride, stride);
    }
    i += count;
  }
}

template <class T>
void read(const RowSet& set, T* out, int64_t stride) {
  with_element_type(set.rows->dtype, [&](auto* element) {
    read_elements<std::remove_pointer_t<decltype(element)>>(set, out, stride);
  });
}
