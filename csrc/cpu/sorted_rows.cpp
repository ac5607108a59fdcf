// SPDX-License-Identifier: Apache-2.0
#include "sorted_rows.h"

#include "parallel.h"

#include <algorithm>

namespace fastvq {
namespace {

// Fewer rows than this are not worth another table of counts.
constexpr int64_t kRowsPerChunk = 8192;

}  // namespace

SortedRows::SortedRows(const Indices& indices, int64_t head, int64_t rows, int64_t num_codes)
    : num_codes_(num_codes), starts_(num_codes + 1), ids_(rows) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t chunks = std::clamp<int64_t>(rows / kRowsPerChunk, 1, threads);
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
  run_tasks(chunks, [&](int64_t chunk) {
    each_row(chunk, [&](int64_t row, int64_t& place) { ids_[place++] = row; });
  });
}

int64_t SortedRows::code_at(int64_t position) const {
  const int64_t* begin = starts_.get();
  return std::upper_bound(begin, begin + num_codes_ + 1, position) - begin - 1;
}

}  // namespace fastvq
