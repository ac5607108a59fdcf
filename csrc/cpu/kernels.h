// SPDX-License-Identifier: Apache-2.0
// What each instruction set provides, and the choice between them at run time.
#pragma once

#include "rows.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace fastvq {

// Rows of one head: first .. first + count, or those named by ids where ids is not null.
struct RowSet {
  const Rows* rows;
  int64_t head;
  int64_t first;
  int64_t count;
  const int64_t* ids;
};

// Codes of one head as the float64 comparison wants them: row k at values + k * stride, `depth`
// elements a row with the tail beyond D zero; a NaN offset marks a code that is never chosen.
template <class T>
struct CodeView {
  const T* values;
  int64_t stride;
  int64_t depth;
  int64_t count;
  const double* scale;
  const double* offset;
};

struct Measure {
  double norm;    // sum of row^2
  double square;  // sum of (row - centre)^2
  double dot;     // sum of row * centre
};

struct Candidate {
  double value;
  int64_t index;
};

// The running answers of a panel of rows: the best and the second-best *group* of codes for each
// row, kept apart for kTrackers parts of the codebook: block b goes to tracker b % kTrackers. The
// runner-up then costs nothing to know, unless it falls to the tracker of the best. [tracker][row]
inline constexpr int64_t kTrackers = 8;
struct PanelState {
  float* best;
  float* second;
  int32_t* group;
};

// What the trackers say of a panel of rows, `row` elements each.
struct PanelSummary {
  int32_t* tracker;  // the one that holds the best group
  float* runner;     // the best score of the other trackers
  float* rest;       // the best score that is no tracker's best
};

// A (row of the panel, group of codes) pair that the float32 scores could not rule out.
struct Suspect {
  int32_t row;
  int32_t group;
};

// Codes are grouped by four on every instruction set, so that all agree on what a group is.
inline constexpr int64_t kGroupCodes = 4;
// Rows that are read are padded to a multiple of this many elements.
inline constexpr int64_t kDepthMultiple = 8;

template <class T>
struct RowKernels {
  void (*read)(const RowSet& set, T* out, int64_t stride);
  // In float64, of scale * row.
  Measure (*measure)(const T* row, double scale, const double* centre, int64_t depth);
  // total[d] += the sum over `count` rows of weights[.] * rows[.][d]; weight 0: row not read.
  void (*weighted_sum)(const T* rows, int64_t stride, int64_t count, int64_t depth,
                       const double* weights, double* total);
  // Equal for rows of equal values.
  uint64_t (*hash)(const T* row, const uint32_t* weights, int64_t depth);
  // Lowers `best` over codes [begin, end): distances of differences, or negative dot products.
  void (*compare)(const T* row, double row_scale, const CodeView<T>& codes, bool dot,
                  int64_t begin, int64_t end, Candidate* best);
  // table[codes[i]][d] += rows[i][d] where codes[i] is not negative
  void (*scatter)(const T* rows, const int64_t* codes, int64_t count, int64_t depth,
                  double* table);
};

// Some rows that follow one another in memory at fixed strides (in elements), and the code of each:
// null where a row has none.
template <class T>
struct GatherRun {
  int64_t count, depth;
  int64_t x_row, x_depth, out_row, out_depth, grad_row, grad_depth;
  const T* const* codes;
};

// Offsets of rows are followed by this many that may be read: where to fetch ahead.
inline constexpr int64_t kOffsetsAhead = 32;

// Whether a code is subtracted from each of its rows, or as often as there are rows from their sum.
// A float64 sum of narrower elements loses nothing that their distance from the code would show.
template <class T>
constexpr bool subtracts_each() {
  return std::is_same_v<T, double>;
}

template <class X, class T>
struct SumKernels {
  // out[d] = the sum over `count` rows of x[offsets[.] + d] - code[d]; without a code, of the rows
  // alone. Returns whether all sums are finite.
  bool (*whole)(const X* x, const int64_t* offsets, int64_t count, int64_t depth, const T* code,
                T* out);
  // The same, for sums that others will be added to.
  bool (*part)(const X* x, const int64_t* offsets, int64_t count, int64_t depth, const T* code,
               double* out);
};

template <class X, class T>
struct GatherKernels {
  // out = code; adds the squares of x - code to eight running sums.
  void (*forward)(const GatherRun<T>& run, const X* x, X* out, double* sums);
  // out = grad + factor * (x - code)
  void (*backward)(const GatherRun<T>& run, const X* x, const X* grad, T factor, X* out);
  SumKernels<X, T> sum;
};

// Words that hold `depth` elements: a multiple of `multiple`, the last ones filled up with zeros.
constexpr int64_t words_of(int64_t depth, int64_t elements, int64_t multiple) {
  return (depth + elements * multiple - 1) / (elements * multiple) * multiple;
}

// One kind of fast pass: how rows and codes are packed into words, and scored. The scores are wrong
// by what packing rounds off, which it reports, and by float32 sums of at most as many terms as
// there are elements.
struct ScoreKernels {
  int64_t panel_rows;   // rows scored together, on the lanes
  int64_t block_codes;  // codes scored together
  int64_t word_elements, word_multiple;
  int64_t scale_words;  // after the others: by what they were divided
  int64_t words(int64_t depth) const {
    return words_of(depth, word_elements, word_multiple) + scale_words;
  }

  // panel[word][row] = the words of (raw[row][.] - shift[.]) * row_scale[row], which has a length
  // of row_length[row] but for its rounding; error[row] is the squared length of what they lost
  void (*pack_rows)(const float* raw, int64_t stride, int64_t depth, const float* shift,
                    const float* row_scale, const float* row_length, float* panel, float* error);
  // The words of (codes[begin + code] * scale - centre) * unit, 0 if never chosen; the squared
  // lengths of codes[.] * scale - centre; and those, times unit^2, of what the words lost
  void (*pack_codes)(const CodeView<float>& codes, int64_t depth, const double* centre, double unit,
                     int64_t begin, float* packed, double* squares, double* errors);
  // Updates the running answer of a panel with `blocks` blocks of packed codes.
  void (*score)(const float* panel, int64_t words, const float* packed, const float* bias,
                int64_t blocks, int32_t first_group, PanelState state);
  void (*summarize)(PanelState state, PanelSummary summary);
  // Lists the groups of those blocks that score at least the row's threshold; returns how many.
  int64_t (*collect)(const float* panel, int64_t words, const float* packed, const float* bias,
                     int64_t blocks, int32_t first_group, const float* threshold, Suspect* out);
};

// What a row of logits has come to: its maximum, and the sums of e^(l - maximum) and of that times
// l - maximum.
template <class T>
struct SoftmaxRow {
  T maximum;
  double sum, moment;
};

// Where the parts of p phi are, at the first of a block; see the op's reference.
template <class T>
struct SoftmaxTerms {
  bool rows_on_lanes;  // else the codes are
  const T *maximum, *log_sum, *log_factor, *factor, *weight;  // of the rows
  const T *bias, *code_factor;                                // of the codes; the latter or null
  const T* direction;                                         // v . a of each pair, or null
};

// Others in a block: a multiple of every panel, and few enough to stay near.
constexpr int64_t kBlock = 192;

// A block is some panels of others. Four owners are worked on together.
template <class T>
struct SoftmaxKernels {
  int64_t panel, width;
  void (*products)(const T* const (&owners)[4], const T* packed, int64_t panels, int64_t depth,
                   bool dot, T scale, T* out, int64_t stride);
  void (*absorb)(T* logits, const T* bias, int64_t count, SoftmaxRow<T>& row);
  T (*weigh)(T* logits, int64_t count, const SoftmaxTerms<T>& terms);
  void (*spread)(const T* terms, int64_t stride, const T* values, int64_t count, int64_t channels,
                 T* totals);
  T (*perturb)(T* logits, const T* bias, int64_t count, uint32_t first_code, uint32_t key,
               uint32_t other_key);
};

struct Kernels {
  const char* name;
  RowKernels<float> rows_float;
  RowKernels<double> rows_double;
  const ScoreKernels* coarse;  // a faster pass with shorter products, or null
  int64_t coarse_depth;        // from how many channels on it is faster
  ScoreKernels fine;           // float32 products
  GatherKernels<float, float> gather_float;
  GatherKernels<c10::Half, float> gather_half;
  GatherKernels<c10::BFloat16, float> gather_bfloat16;
  GatherKernels<float, double> gather_float_double;
  GatherKernels<c10::Half, double> gather_half_double;
  GatherKernels<c10::BFloat16, double> gather_bfloat16_double;
  GatherKernels<double, double> gather_double;
  SoftmaxKernels<float> softmax_float;
  SoftmaxKernels<double> softmax_double;
};

// The table in use: the best the machine has, or what FASTVQ_CPU_CAPABILITY names.
const Kernels& kernels();

template <class T>
const RowKernels<T>& row_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return kernels().rows_float;
  } else {
    return kernels().rows_double;
  }
}

template <class T>
const SoftmaxKernels<T>& softmax_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return kernels().softmax_float;
  } else {
    return kernels().softmax_double;
  }
}

template <class X, class T>
const GatherKernels<X, T>& gather_kernels() {
  const Kernels& table = kernels();
  constexpr bool wide = std::is_same_v<T, double>;
  if constexpr (std::is_same_v<X, double>) return table.gather_double;
  else if constexpr (std::is_same_v<X, c10::Half> && wide) return table.gather_half_double;
  else if constexpr (std::is_same_v<X, c10::Half>) return table.gather_half;
  else if constexpr (std::is_same_v<X, c10::BFloat16> && wide) return table.gather_bfloat16_double;
  else if constexpr (std::is_same_v<X, c10::BFloat16>) return table.gather_bfloat16;
  else if constexpr (wide) return table.gather_float_double;
  else return table.gather_float;
}

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const ScoreKernels kAvx2Int16Scores;
extern const ScoreKernels kAvx512Bfloat16Scores;
extern const ScoreKernels kAmxScores;
#endif

}  // namespace fastvq
