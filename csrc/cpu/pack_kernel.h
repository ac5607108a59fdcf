// SPDX-License-Identifier: Apache-2.0
// Reading rows of any strides and element type, and packing rows and codes for the fast pass.
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

// raw needs kLanes rows and columns of slack: blocks at the edge read past it and drop the excess.
void pack_rows(const float* raw, int64_t stride, int64_t depth, const float* shift,
               const float* row_scale, float* panel) {
  for (int v = 0; v < kRowVectors; ++v) {
    const Floats scale = load(row_scale + v * kLanes);
    for (int64_t d = 0; d < depth; d += kLanes) {
      Floats column[kLanes];
      transpose(raw + v * kLanes * stride + d, stride, column);
      const int64_t columns = depth - d < kLanes ? depth - d : kLanes;
      for (int64_t j = 0; j < columns; ++j) {
        store(panel + (d + j) * kPanelRows + v * kLanes,
              (column[j] - broadcast(shift[d + j])) * scale);
      }
    }
  }
}

// Codes past the last, or never chosen, are packed as zeros: their bias keeps them out.
void pack_codes(const CodeView<float>& codes, int64_t depth, const double* centre, double unit,
                int64_t begin, float* packed, double* squares) {
  const float* source[kLanes];
  double scale[kLanes] = {};
  for (int c = 0; c < kLanes; ++c) {
    const int64_t k = begin + c;
    const bool used = c < kBlockCodes && k < codes.count && codes.offset[k] == codes.offset[k];
    source[c] = used ? codes.values + k * codes.stride : nullptr;
    if (used) {
      scale[c] = codes.scale[k];
      squares[c] = measure(source[c], scale[c], centre, codes.depth).square;
    }
  }
  for (int64_t d = 0; d < depth; d += kLanes) {
    const int64_t columns = depth - d < kLanes ? depth - d : kLanes;
    float tile[kLanes * kLanes] = {};
    for (int c = 0; c < kBlockCodes; ++c) {
      if (source[c] == nullptr) continue;
      for (int64_t j = 0; j < columns; ++j) {
        const double value = source[c][d + j] * scale[c] - centre[d + j];
        tile[c * kLanes + j] = static_cast<float>(value * unit);
      }
    }
    Floats turned[kLanes];
    transpose(tile, kLanes, turned);
    for (int64_t j = 0; j < columns; ++j) {
      __builtin_memcpy(packed + (d + j) * kBlockCodes, &turned[j], kBlockCodes * sizeof(float));
    }
  }
}
