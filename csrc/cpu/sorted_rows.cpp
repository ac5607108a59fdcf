// SPDX-License-Identifier: Apache-2.0
#include "sorted_rows.h"

#include "kernels.h"
#include "parallel.h"

#include <algorithm>

namespace fastvq {
namespace {

// Fewer rows than this are not worth another table of counts.
constexpr int64_t kRowsPerChunk = 8192;

}  // namespace

SortedRows::SortedRows(const Rows& x, int64_t head, const Indices& indices, int64_t num_codes)
    : num_codes_(num_codes), starts_(num_codes + 1), offsets_(x.count() + kOffsetsAhead) {
  const int64_t rows = x.count();
  const int64_t threads = torch::stable::get_num_threads();
  // at least K rows a chunk, so that the tables of counts take no more than the rows
  const int64_t chunks =
      std::clamp<int64_t>(rows / std::max(kRowsPerChunk, num_codes), 1, threads);
  const int64_t per_chunk = divide_up(rows, chunks);
  const Buffer<int64_t> next(chunks * num_codes);  // per chunk and code: a count, then a position
  const auto each_row = [&](int64_t chunk, const auto& visit) {
    const int64_t end = std::min(rows, (chunk + 1) * per_chunk);
    int64_t* table = next.get() + chunk * num_codes;
    for (int64_t row = chunk * per_chunk; row < end; ++row) {
      const int64_t code = indices.at(row, head);
      if (code >= 0) visit(row, table[code]);
    }
  };
  run_tasks(chunks, [&](int64_t chunk) {
    std::fill_n(next.get() + chunk * num_codes, num_codes, 0);
    each_row(chunk, [](int64_t, int64_t& count) { ++count; });
  });
  int64_t position = 0;
  for (int64_t code = 0; code < num_codes; ++code) {
    starts_[code] = position;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t count = next[chunk * num_codes + code];
      next[chunk * num_codes + code] = position;
      position += count;
    }
  }
  starts_[num_codes] = position;
  std::fill_n(offsets_.get() + position, kOffsetsAhead, 0);
  const bool flat = x.batch == 1 || x.batch_stride == x.length * x.length_stride;
  run_tasks(chunks, [&](int64_t chunk) {
    each_row(chunk, [&](int64_t row, int64_t& place) {
      // a division a row, where rows do not follow one another at one stride
      offsets_[place++] =
          flat ? row * x.length_stride + head * x.head_stride : x.offset(row, head);
    });
  });
}

}  // namespace fastvq
