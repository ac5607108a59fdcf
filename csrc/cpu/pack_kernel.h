// SPDX-License-Identifier: Apache-2.0
// Packing rows and codes as the words that a product takes: panel[word][row], packed[word][code].
// Included once for each product, inside its namespace and target region.

// raw needs kLanes rows and columns of slack: blocks at the edge read past it and drop the excess.
void pack_rows(const float* raw, int64_t stride, int64_t depth, const float* shift,
               const float* row_scale, const float* row_length, float* panel, float* error) {
  const int64_t words = words_of(depth, kWordElements, kWordMultiple);
  for (int v = 0; v < kRowVectors; ++v) {
    const Floats scale = load(row_scale + v * kLanes);
    const RowFormat format(load(row_length + v * kLanes), depth);
    if constexpr (kScaleWords > 0) format.store_scale(panel + words * kPanelRows + v * kLanes);
    Floats lost = broadcast(0.0f);
    for (int64_t w = 0; w < words; w += kLanes / kWordElements) {
      const int64_t d = w * kWordElements;
      Floats column[kLanes];
      if (d < depth) transpose(raw + v * kLanes * stride + d, stride, column);
      for (int64_t j = 0; j < kLanes; ++j) {
        const bool inside = d + j < depth;
        column[j] = inside ? (column[j] - broadcast(shift[d + j])) * scale : broadcast(0.0f);
      }
      const int64_t size = words - w < kLanes / kWordElements ? words - w : kLanes / kWordElements;
      for (int64_t j = 0; j < size; ++j) {
        const Floats packed = word(column + j * kWordElements, format, lost);
        store(panel + (w + j) * kPanelRows + v * kLanes, packed);
      }
    }
    store(error + v * kLanes, lost);
  }
}

// Codes past the last, or never chosen, are packed as zeros: their bias keeps them out.
void pack_codes(const CodeView<float>& codes, int64_t depth, const double* centre, double unit,
                int64_t begin, float* packed, double* squares, double* errors) {
  const int64_t words = words_of(depth, kWordElements, kWordMultiple);
  for (int c = 0; c < kBlockCodes; ++c) {
    const int64_t k = begin + c;
    const bool used = k < codes.count && codes.offset[k] == codes.offset[k];
    const float* source = codes.values + k * codes.stride;
    double length = 0.0;
    if (used) {
      const Measure code = measure(source, codes.scale[k], centre, codes.depth);
      squares[c] = code.square;
      // compilers may fuse the difference there and not below, which tells them this far apart
      length = (__builtin_sqrt(code.square) + 0x1p-50 * __builtin_sqrt(code.norm)) * unit;
    }
    const CodeFormat format(length, depth);
    if constexpr (kScaleWords > 0) format.store_scale(code_words(packed, words) + c);
    errors[c] = 0.0;
    for (int64_t w = 0; w < words; w += kLanes) {
      float values[kLanes * kWordElements] = {};
      const int64_t d = w * kWordElements;
      const int64_t rest = used ? depth - d : 0;
      const int64_t size = rest < kLanes * kWordElements ? rest : kLanes * kWordElements;
      for (int64_t j = 0; j < size; ++j) {
        const double value = source[d + j] * codes.scale[k] - centre[d + j];
        values[j] = static_cast<float>(value * unit);
      }
      float line[kLanes];
      errors[c] += words_of_code(values, format, line);
      const int64_t lines = words - w < kLanes ? words - w : kLanes;
      store_code_words(line, lines, c, code_words(packed, w));
    }
  }
}
